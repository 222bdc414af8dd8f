package update

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/internal/durable"
	"github.com/trusttree/trusttree/internal/tpm"
)

// TPMFloorsConfig configures TPMFloors. TPM and Dir are required.
type TPMFloorsConfig struct {
	TPM transport.TPM
	// Dir holds the two state files.
	Dir string
	// Index is the NV index of the counter. Zero means 0x01800100.
	Index tpm2.TPMHandle
	// OwnerAuth authorises defining the counter and using the storage key.
	OwnerAuth []byte
	// Provision makes the counter and empty floors where there is neither.
	// Set it at manufacture and never after: with it, who clears the TPM and
	// deletes the files has a node without floors.
	Provision bool
}

// TPMFloors keeps the floors in two files that a counter in the TPM's NV
// memory and a key that never leaves the TPM vouch for: a file that was put
// back has an older counter value, one that was altered has a wrong MAC, and
// one that was deleted is missing. All of these are ErrStateRolledBack.
//
// The counter's first value is whatever the TPM gives it (more than every
// counter before), so it says nothing but which file is the newest. Software
// that holds OwnerAuth can undefine the counter, which is detected, or use the
// key, which is not: set OwnerAuth where the node's software is not trusted.
func TPMFloors(cfg TPMFloorsConfig) (FloorStore, error) {
	if cfg.TPM == nil || cfg.Dir == "" {
		return nil, errors.New("update: TPMFloorsConfig.TPM or Dir is missing")
	}
	cfg.Index = or(cfg.Index, tpm.NVUpdateFloor)
	return &tpmFloors{cfg: cfg, dev: tpm.Wrap(cfg.TPM)}, nil
}

type tpmFloors struct {
	cfg TPMFloorsConfig
	dev *tpm.Device
	mu  sync.Mutex
}

func (s *tpmFloors) Kind() string { return "tpm" }

func (s *tpmFloors) Load(ctx context.Context) (f Floors, err error) {
	err = s.do(ctx, func(d *tpm.Device) error {
		cur, err := s.load(d)
		f = cur.Floors
		return err
	})
	return f, err
}

func (s *tpmFloors) Raise(ctx context.Context, to Floors) error {
	return s.do(ctx, func(d *tpm.Device) error {
		cur, err := s.load(d)
		if err != nil {
			return err
		}
		return s.store(d, floorsFile{Floors: cur.Floors.raised(to), Counter: cur.Counter + 1})
	})
}

func (s *tpmFloors) do(ctx context.Context, f func(*tpm.Device) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := durable.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return stateError("floors", err)
	}
	return s.dev.Do(ctx, f)
}

// store writes one file for the counter's next value, increments the counter,
// and writes the other: whichever step the power cut comes at, one file has
// the counter's value.
func (s *tpmFloors) store(d *tpm.Device, f floorsFile) error {
	names := floorNames(s.cfg.Dir)
	if err := s.write(d, names[0], f); err != nil {
		return err
	}
	name, err := s.public(d)
	if err != nil {
		return err
	}
	if name == nil {
		return refuse(ErrStateRolledBack, "floors", "NV counter 0x%08x is gone", uint32(s.cfg.Index))
	}
	if _, err := (tpm2.NVIncrement{AuthHandle: s.owner(), NVIndex: tpm2.NamedHandle{Handle: s.cfg.Index, Name: *name}}).Execute(d); err != nil {
		return fmt.Errorf("update: floors: increment NV counter: %w", err)
	}
	n, err := s.counter(d, *name)
	if err != nil {
		return err
	}
	if n != f.Counter {
		return refuse(ErrStateRolledBack, "floors", "NV counter went to %d, want %d: who else increments it?", n, f.Counter)
	}
	return s.write(d, names[1], f)
}

func (s *tpmFloors) write(d *tpm.Device, name string, f floorsFile) (err error) {
	f.Version = 1
	if f.MAC, err = s.mac(d, f); err != nil {
		return err
	}
	if err := f.write(name); err != nil {
		return stateError("floors", err)
	}
	return nil
}

// load returns the file that the counter and the key vouch for.
func (s *tpmFloors) load(d *tpm.Device) (floorsFile, error) {
	var files []*floorsFile
	var broken error
	for _, name := range floorNames(s.cfg.Dir) {
		f, err := readFloors(name)
		if err != nil {
			broken = err
		}
		files = append(files, f)
	}
	name, err := s.public(d)
	if err != nil {
		return floorsFile{}, err
	}
	if name == nil {
		if files[0] != nil || files[1] != nil || broken != nil {
			return floorsFile{}, refuse(ErrStateRolledBack, "floors", "there are floors on disk, but NV counter 0x%08x is gone: was the TPM cleared?", uint32(s.cfg.Index))
		}
		if !s.cfg.Provision {
			return floorsFile{}, refuse(ErrStateRolledBack, "floors", "NV counter 0x%08x does not exist: provision the floors at manufacture", uint32(s.cfg.Index))
		}
		return s.provision(d)
	}
	n, err := s.counter(d, *name)
	if errors.Is(err, tpm2.TPMRCNVUninitialized) && s.cfg.Provision {
		return s.provision(d)
	}
	if err != nil {
		return floorsFile{}, err
	}
	for i, f := range files {
		if f == nil || f.Counter != n {
			continue
		}
		mac, err := s.mac(d, *f)
		if err != nil {
			return floorsFile{}, err
		}
		if !hmac.Equal(mac, f.MAC) {
			return floorsFile{}, refuse(ErrStateRolledBack, "floors", "the state file was altered: its MAC is wrong")
		}
		if o := files[1-i]; o == nil || o.Counter != n {
			// The other copy was lost, or a power cut came before it was
			// written.
			if err := f.write(floorNames(s.cfg.Dir)[1-i]); err != nil {
				return floorsFile{}, stateError("floors", err)
			}
		}
		return *f, nil
	}
	if s.cfg.Provision && files[0] != nil && files[1] == nil && broken == nil && files[0].Floors.equalZero() {
		return s.provision(d) // the power was cut during the first provisioning
	}
	if broken == nil {
		broken = errors.New("no state file has it")
	}
	return floorsFile{}, refuse(ErrStateRolledBack, "floors", "NV counter is %d: %v", n, broken)
}

func (f Floors) equalZero() bool {
	return f.Security == 0 && f.Data == 0 && f.Time.IsZero() && f.Images.Root == 0 && f.Director.Root == 0
}

// provision makes the counter, if need be, and empty floors.
func (s *tpmFloors) provision(d *tpm.Device) (floorsFile, error) {
	name, err := s.public(d)
	if err != nil {
		return floorsFile{}, err
	}
	if name == nil {
		_, err := tpm2.NVDefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(s.cfg.OwnerAuth)},
			PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
				NVIndex: s.cfg.Index, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
				Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true, NT: tpm2.TPMNTCounter},
			}),
		}.Execute(d)
		if err != nil {
			return floorsFile{}, fmt.Errorf("update: floors: define NV counter 0x%08x: %w", uint32(s.cfg.Index), err)
		}
		if name, err = s.public(d); err != nil || name == nil {
			return floorsFile{}, errors.Join(errors.New("update: floors: NV counter was not defined"), err)
		}
	}
	// A counter has no value before its first increment, and its first value
	// is the TPM's choice.
	if _, err := (tpm2.NVIncrement{AuthHandle: s.owner(), NVIndex: tpm2.NamedHandle{Handle: s.cfg.Index, Name: *name}}).Execute(d); err != nil {
		return floorsFile{}, fmt.Errorf("update: floors: increment NV counter: %w", err)
	}
	if name, err = s.public(d); err != nil || name == nil { // TPMA_NV_WRITTEN is part of the name
		return floorsFile{}, errors.Join(errors.New("update: floors: NV counter is gone"), err)
	}
	n, err := s.counter(d, *name)
	if err != nil {
		return floorsFile{}, err
	}
	f := floorsFile{Version: 1, Counter: n}
	for _, file := range floorNames(s.cfg.Dir) {
		if err := s.write(d, file, f); err != nil {
			return floorsFile{}, err
		}
	}
	return f, nil
}

func (s *tpmFloors) owner() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(s.cfg.OwnerAuth)}
}

// public returns the name of the counter, or nil where there is none.
func (s *tpmFloors) public(d *tpm.Device) (*tpm2.TPM2BName, error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: s.cfg.Index}.Execute(d)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("update: floors: NV counter 0x%08x: %w", uint32(s.cfg.Index), err)
	}
	pub, err := rsp.NVPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("update: floors: NV counter: %w", err)
	}
	if pub.Attributes.NT != tpm2.TPMNTCounter || pub.Attributes.ClearSTClear || pub.Attributes.Orderly {
		return nil, refuse(ErrStateRolledBack, "floors", "NV index 0x%08x is no durable counter", uint32(s.cfg.Index))
	}
	name, err := tpm2.NVName(pub) // computed, not believed
	if err != nil {
		return nil, fmt.Errorf("update: floors: NV counter: %w", err)
	}
	return name, nil
}

// counter reads the value in a session salted to the storage key, so that
// nobody on the bus can answer in the TPM's place.
func (s *tpmFloors) counter(d *tpm.Device, name tpm2.TPM2BName) (n uint64, err error) {
	srk, err := tpm.SRK(d, s.cfg.OwnerAuth)
	if err != nil {
		return 0, stateError("floors", err)
	}
	defer func() { err = errors.Join(err, srk.Flush()) }()
	rsp, err := tpm2.NVRead{
		AuthHandle: tpm2.AuthHandle{Handle: s.cfg.Index, Name: name, Auth: srk.Session()},
		NVIndex:    tpm2.NamedHandle{Handle: s.cfg.Index, Name: name}, Size: 8,
	}.Execute(d)
	if err != nil {
		return 0, fmt.Errorf("update: floors: read NV counter: %w", err)
	}
	if len(rsp.Data.Buffer) != 8 {
		return 0, errors.New("update: floors: NV counter is not 8 bytes long")
	}
	return binary.BigEndian.Uint64(rsp.Data.Buffer), nil
}

// macTemplate is the template of a key that the TPM derives from its storage seed
// and never lets out.
func macTemplate() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{
			Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgHMAC,
				Details: tpm2.NewTPMUSchemeKeyedHash(tpm2.TPMAlgHMAC, &tpm2.TPMSSchemeHMAC{HashAlg: tpm2.TPMAlgSHA256})},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: []byte("trusttree update floors v1")}),
	}
}

func (s *tpmFloors) mac(d *tpm.Device, f floorsFile) (mac []byte, err error) {
	key, err := tpm.CreatePrimary(d, tpm2.TPMRHOwner, s.cfg.OwnerAuth, macTemplate())
	if err != nil {
		return nil, stateError("floors", err)
	}
	defer func() { err = errors.Join(err, key.Flush()) }()
	body := sha256.Sum256(f.body())
	rsp, err := tpm2.Hmac{Handle: key.Auth(nil), Buffer: tpm2.TPM2BMaxBuffer{Buffer: body[:]}, HashAlg: tpm2.TPMAlgNull}.Execute(d)
	if err != nil {
		return nil, fmt.Errorf("update: floors: MAC: %w", err)
	}
	return rsp.OutHMAC.Buffer, nil
}

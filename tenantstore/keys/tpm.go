package keys

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/internal/tpm"
)

// seal seals the master key to the TPM: a KEYEDHASH object below the storage
// root key. The key goes in through a salted, encrypted session.
func seal(ctx context.Context, t transport.TPM, key []byte) (m masterFile, err error) {
	err = tpm.Wrap(t).Do(ctx, func(d *tpm.Device) error {
		srk, err := tpm.SRK(d, nil)
		if err != nil {
			return err
		}
		rsp, err := tpm2.Create{
			ParentHandle: srk.Auth(nil),
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: key})}},
			InPublic: tpm2.New2B(tpm2.TPMTPublic{Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
				ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true, NoDA: true}}),
		}.Execute(d, srk.Session(tpm.EncryptIn()))
		if err == nil {
			m = masterFile{Version: 1, Kind: "tpm", Public: tpm2.Marshal(rsp.OutPublic), Private: tpm2.Marshal(rsp.OutPrivate)}
		}
		return errors.Join(err, srk.Flush())
	})
	if err != nil {
		err = fmt.Errorf("seal the master key to the TPM: %w", err)
	}
	return m, err
}

func unseal(ctx context.Context, t transport.TPM, m masterFile) (key []byte, err error) {
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](m.Public)
	if err != nil {
		return nil, err
	}
	private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](m.Private)
	if err != nil {
		return nil, err
	}
	err = tpm.Wrap(t).Do(ctx, func(d *tpm.Device) error {
		srk, err := tpm.SRK(d, nil)
		if err != nil {
			return err
		}
		obj, err := tpm.Load(d, srk, nil, *private, *public)
		if err != nil {
			return errors.Join(err, srk.Flush())
		}
		rsp, err := tpm2.Unseal{ItemHandle: obj.Auth(nil)}.Execute(d, srk.Session(tpm.EncryptOut()))
		if err == nil {
			key = rsp.OutData.Buffer
		}
		return errors.Join(err, obj.Flush(), srk.Flush())
	})
	if err != nil {
		return nil, fmt.Errorf("unseal the master key (is it this machine's TPM, and not cleared?): %w", err)
	}
	return key, nil
}

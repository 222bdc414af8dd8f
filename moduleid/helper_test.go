package moduleid_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/atecc"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
)

const node = "node-7"

// pole is a node with emulated chips on one bus, for tests.
type pole struct {
	ca    *moduleidtest.CA
	bus   *moduleidtest.Bus
	host  *atecc.Host
	v     *moduleid.Verifier
	chips map[string]*moduleidtest.ATECC608
	certs map[string]*x509.Certificate
	bays  []moduleid.BayConfig
	pcrs  *softPCRs
}

func newPole(t testing.TB, connectors ...string) *pole {
	t.Helper()
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	p := &pole{ca: ca, bus: moduleidtest.NewBus(0), chips: map[string]*moduleidtest.ATECC608{}, certs: map[string]*x509.Certificate{}, pcrs: newPCRs()}
	p.host = atecc.NewHost(p.bus)
	p.v = &moduleid.Verifier{
		Schemes:             []moduleid.Scheme{atecc.Scheme(), moduleid.SignerScheme()},
		Roots:               ca.Pool(),
		Registry:            moduleid.Records{},
		Classes:             map[string]moduleid.Class{"camera": {}},
		Connectors:          map[string]moduleid.Connector{},
		UnsafeNoRevocations: true,
	}
	for i, c := range connectors {
		p.v.Connectors[c] = moduleid.Connector{Classes: []string{"camera"}}
		addr := uint8(0x60 + i)
		chip := newChip(t, ca, c)
		p.chips[c] = chip.emulator
		p.certs[c] = chip.cert
		p.register(chip.cert, "camera")
		p.bus.Plug(addr, chip.emulator)
		p.bays = append(p.bays, moduleid.BayConfig{Connector: c, Open: func(context.Context) (moduleid.Chip, error) {
			return p.host.Chip(atecc.Config{Address: addr})
		}, Timeout: 3 * time.Second})
	}
	return p
}

func (p *pole) register(cert *x509.Certificate, class string) {
	id := moduleid.ID(cert)
	p.v.Registry.(moduleid.Records)[id] = moduleid.Record{ID: id, Class: class}
}

func (p *pole) inventory(t testing.TB) *moduleid.Inventory {
	t.Helper()
	inv, err := moduleid.NewInventory(moduleid.InventoryConfig{Node: node, Verifier: p.v, Bays: p.bays, PCRs: p.pcrs})
	require.NoError(t, err)
	return inv
}

type testChip struct {
	emulator *moduleidtest.ATECC608
	cert     *x509.Certificate
}

func newChip(t testing.TB, ca *moduleidtest.CA, name string) testChip {
	t.Helper()
	chip, err := moduleidtest.NewATECC608(moduleidtest.Instant)
	require.NoError(t, err)
	cert, err := ca.Issue(name, chip.PublicKey(), nil)
	require.NoError(t, err)
	require.NoError(t, chip.Store(cert))
	return testChip{chip, cert}
}

// softPCRs is a PCR bank without a TPM.
type softPCRs struct {
	values map[crypto.Hash]map[int][]byte
	fail   error
	late   bool // fail only after the extend was done
}

func newPCRs() *softPCRs {
	return &softPCRs{values: map[crypto.Hash]map[int][]byte{crypto.SHA256: {}, crypto.SHA384: {}}}
}

func (s *softPCRs) ExtendPCR(_ context.Context, pcr int, digests map[crypto.Hash][]byte) error {
	if s.fail != nil && !s.late {
		return s.fail
	}
	for h, d := range digests {
		old, _ := s.ReadPCR(context.Background(), pcr, h)
		w := h.New()
		w.Write(old)
		w.Write(d)
		s.values[h][pcr] = w.Sum(nil)
	}
	return s.fail
}

func (s *softPCRs) ReadPCR(_ context.Context, pcr int, bank crypto.Hash) ([]byte, error) {
	if v := s.values[bank][pcr]; v != nil {
		return v, nil
	}
	return make([]byte, bank.Size()), nil
}

func reasonOf(t testing.TB, err error) moduleid.Reason {
	t.Helper()
	require.ErrorIs(t, err, moduleid.ErrRefused)
	var refused *moduleid.RefusedError
	require.ErrorAs(t, err, &refused)
	return refused.Reason()
}

func oids(s string) []asn1.ObjectIdentifier {
	var id asn1.ObjectIdentifier
	for _, part := range strings.Split(s, ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			panic(err)
		}
		id = append(id, n)
	}
	return []asn1.ObjectIdentifier{id}
}

func criticalExtension() []pkix.Extension {
	return []pkix.Extension{{Id: oids("1.3.6.1.4.1.99999.1")[0], Critical: true, Value: []byte{5, 0}}}
}

func poolOf(t testing.TB, der []byte) *x509.CertPool {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	p := x509.NewCertPool()
	p.AddCert(cert)
	return p
}

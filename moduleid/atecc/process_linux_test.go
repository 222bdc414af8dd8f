package atecc_test

import (
	"context"
	"encoding/gob"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/atecc"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
)

// remoteBus is a bus that several processes reach: transfers go to the process
// that has the emulated chips, the lock is that of OpenI2C on a file.
type remoteBus struct {
	conn net.Conn
	enc  *gob.Encoder
	dec  *gob.Decoder
	file *os.File
	lock func(context.Context) (func() error, error)
}

type transfer struct {
	Wake bool
	Addr uint8
	W    []byte
	N    int
}

type outcome struct {
	Data []byte
	NACK bool
	Err  string
}

func openRemote(dir string) (*remoteBus, error) {
	conn, err := net.Dial("unix", filepath.Join(dir, "bus"))
	if err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	return &remoteBus{conn, gob.NewEncoder(conn), gob.NewDecoder(conn), lock, atecc.Flock(lock)}, err
}

func (b *remoteBus) call(t transfer) ([]byte, error) {
	if err := b.enc.Encode(t); err != nil {
		return nil, err
	}
	var o outcome
	if err := b.dec.Decode(&o); err != nil {
		return nil, err
	}
	if o.NACK {
		return nil, atecc.ErrNACK
	}
	if o.Err != "" {
		return nil, errors.New(o.Err)
	}
	return o.Data, nil
}

func (b *remoteBus) Tx(ctx context.Context, addr uint8, w, r []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	data, err := b.call(transfer{Addr: addr, W: w, N: len(r)})
	copy(r, data)
	return err
}

func (b *remoteBus) Wake(context.Context) error {
	_, err := b.call(transfer{Wake: true})
	return err
}

func (b *remoteBus) Lock(ctx context.Context) (func() error, error) { return b.lock(ctx) }
func (b *remoteBus) Close() error                                   { return errors.Join(b.conn.Close(), b.file.Close()) }
func (b *remoteBus) String() string                                 { return "remote bus" }

// serveBus carries out transfers on the emulated bus; before is called with
// the number of each transfer of one connection.
func serveBus(l net.Listener, bus *moduleidtest.Bus, before func(peer, n int)) {
	for peer := 0; ; peer++ {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			enc, dec := gob.NewEncoder(conn), gob.NewDecoder(conn)
			for n := 0; ; n++ {
				var t transfer
				if dec.Decode(&t) != nil {
					return
				}
				before(peer, n)
				var o outcome
				var err error
				if t.Wake {
					err = bus.Wake(context.Background())
				} else {
					o.Data = make([]byte, t.N)
					err = bus.Tx(context.Background(), t.Addr, t.W, o.Data)
				}
				if o.NACK = errors.Is(err, atecc.ErrNACK); err != nil && !o.NACK {
					o.Err = err.Error()
				}
				if enc.Encode(o) != nil {
					return
				}
			}
		}()
	}
}

const busDirEnv = "ATECC_TEST_BUS"

func TestMain(m *testing.M) {
	if dir := os.Getenv(busDirEnv); dir != "" {
		if err := child(dir); err != nil {
			println(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child is the other process: it proves until it is killed.
func child(dir string) error {
	bus, err := openRemote(dir)
	if err != nil {
		return err
	}
	chip, err := atecc.NewHost(bus).Chip(atecc.Config{})
	if err != nil {
		return err
	}
	for {
		if _, err := chip.Prove(context.Background(), moduleid.NewChallenge("child", "bay")); err != nil {
			return err
		}
	}
}

// Two processes on one bus; one is killed at each of its transfers in turn. A
// transfer is a kernel call, which a kill does not cut short.
func TestThreat15OtherProcessKilledAtAnyTransfer(t *testing.T) {
	step := testenv.N(13, 1)
	for n := 1; n <= 110; n += step {
		killedAt(t, n)
		if t.Failed() {
			t.Fatalf("killed at transfer %d", n)
		}
	}
}

func killedAt(t *testing.T, n int) {
	dir := t.TempDir()
	bus := moduleidtest.NewBus(0)
	bus.Plug(0x60, certified(t, 0.2))
	l, err := net.Listen("unix", filepath.Join(dir, "bus"))
	require.NoError(t, err)
	defer l.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), busDirEnv+"="+dir)
	cmd.Stderr = os.Stderr
	killed, started := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	go serveBus(l, bus, func(peer, i int) {
		if peer == 0 && i == n && once.CompareAndSwap(false, true) {
			<-started
			assert.NoError(t, cmd.Process.Kill())
			_, _ = cmd.Process.Wait()
			close(killed)
		}
	})
	require.NoError(t, cmd.Start())
	close(started)
	// The child is first on the bus: its connection is peer 0.
	deadline := time.After(30 * time.Second)
	select {
	case <-killed:
	case <-deadline:
		t.Fatal("the other process never came that far")
	}
	mine, err := openRemote(dir)
	require.NoError(t, err)
	defer mine.Close()
	chip, err := atecc.NewHost(mine).Chip(atecc.Config{})
	require.NoError(t, err)
	proves(t, chip)
}

func TestThreat15TwoProcessesTakeTurns(t *testing.T) {
	dir := t.TempDir()
	bus := moduleidtest.NewBus(0)
	bus.Plug(0x60, certified(t, 0.05))
	l, err := net.Listen("unix", filepath.Join(dir, "bus"))
	require.NoError(t, err)
	defer l.Close()
	transfers := make(chan struct{}, 1<<16)
	go serveBus(l, bus, func(peer, _ int) {
		if peer == 0 {
			transfers <- struct{}{}
		}
	})
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), busDirEnv+"="+dir)
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	defer func() {
		assert.NoError(t, cmd.Process.Kill(), "it never failed")
		_, _ = cmd.Process.Wait()
	}()
	<-transfers
	mine, err := openRemote(dir)
	require.NoError(t, err)
	defer mine.Close()
	chip, err := atecc.NewHost(mine).Chip(atecc.Config{})
	require.NoError(t, err)
	for range 4 {
		proves(t, chip)
	}
}

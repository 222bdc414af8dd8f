package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/examples/wire"
)

func openTestSpool(t *testing.T, dir string) (*spool, *age.HybridIdentity) {
	id, err := age.GenerateHybridIdentity()
	require.NoError(t, err)
	s, err := openSpool(dir, "lamp", id.Recipient())
	require.NoError(t, err)
	return s, id
}

func put(t *testing.T, s *spool, seq uint64, value string) error {
	t.Helper()
	done := make(chan error, 1)
	s.put(t.Context(), &pending{sample: wire.Sample{Time: time.Now(), Value: []byte(value)}, seq: seq, done: func(err error) { done <- err }})
	return <-done
}

// records reads back all that is in a spool, as the cloud would.
func records(t *testing.T, s *spool, id age.Identity) []string {
	t.Helper()
	files, err := s.files()
	require.NoError(t, err)
	var out []string
	for _, f := range files {
		sealed, err := os.ReadFile(f.name)
		require.NoError(t, err)
		r, err := age.Decrypt(bytes.NewReader(sealed), id)
		require.NoError(t, err)
		plain, err := io.ReadAll(r)
		require.NoError(t, err)
		var b wire.Batch
		require.NoError(t, wire.Decode(plain, wire.MaxBatch, &b))
		for _, rec := range b.Records {
			out = append(out, string(rec.Value))
		}
	}
	return out
}

func TestNumberedRecordsCountOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lamp")
	s, id := openTestSpool(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	go s.run(ctx)
	for _, seq := range []uint64{1, 2, 2, 1, 3} {
		require.NoError(t, put(t, s, seq, fmt.Sprint(seq)))
	}
	require.NoError(t, put(t, s, 0, "a")) // of a sensor that does not number
	require.NoError(t, put(t, s, 0, "a"))
	cancel()
	assert.Equal(t, []string{"1", "2", "3", "a", "a"}, records(t, s, id))

	// After a cut at any point the numbers are known: from the files, and from
	// the file that remains when they have left.
	again, _ := openTestSpool(t, dir)
	assert.EqualValues(t, 3, again.last)
	files, err := again.files()
	require.NoError(t, err)
	for _, f := range files {
		require.NoError(t, again.remove(f))
	}
	again, _ = openTestSpool(t, dir)
	assert.EqualValues(t, 3, again.last)
}

// TestDamagedNumberStopsNothingElse: the file is named and set aside, and no
// number that was delivered is taken again.
func TestDamagedNumberStopsNothingElse(t *testing.T) {
	delivered := func() (string, age.Identity) { // up to number 3
		dir := filepath.Join(t.TempDir(), "lamp")
		s, id := openTestSpool(t, dir)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go s.run(ctx)
		require.NoError(t, put(t, s, 3, "delivered"))
		files, err := s.files()
		require.NoError(t, err)
		require.NoError(t, s.remove(files[0]))
		return dir, id
	}
	damage := func(t *testing.T, dir string, names ...string) {
		for _, name := range names {
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("3 0011"), 0o600))
		}
	}
	for _, name := range []string{"seq", "seq-copy"} {
		t.Run(name+" alone", func(t *testing.T) {
			dir, _ := delivered()
			damage(t, dir, name)
			s, _ := openTestSpool(t, dir)
			require.NoError(t, s.unknown)
			assert.EqualValues(t, 3, s.last, "the other file has it")
			require.Len(t, s.damaged, 1)
			assert.Contains(t, s.damaged[0], filepath.Join(dir, name))
			assert.FileExists(t, filepath.Join(dir, name+".bad"))
			again, _ := openTestSpool(t, dir)
			assert.Empty(t, again.damaged, "it was written anew")
			assert.EqualValues(t, 3, again.last)
		})
	}
	t.Run("both", func(t *testing.T) {
		dir, _ := delivered()
		damage(t, dir, "seq", "seq-copy")
		for range 2 { // a restart does not forget it
			s, id := openTestSpool(t, dir)
			require.Error(t, s.unknown)
			ctx, cancel := context.WithCancel(t.Context())
			go s.run(ctx)
			require.ErrorContains(t, put(t, s, 3, "delivered"), filepath.Join(dir, "seq"), "it may have been delivered, and was")
			require.NoError(t, put(t, s, 0, "unnumbered"))
			cancel()
			files, err := s.files()
			require.NoError(t, err)
			assert.Equal(t, []string{"unnumbered"}, records(t, s, id))
			require.NoError(t, s.remove(files[0]))
		}
		// As the error says.
		require.NoError(t, os.WriteFile(filepath.Join(dir, "seq"), []byte("3\n"), 0o600))
		s, _ := openTestSpool(t, dir)
		require.NoError(t, s.unknown)
		assert.EqualValues(t, 3, s.last)
	})
	t.Run("both, and a batch waits", func(t *testing.T) {
		dir, _ := delivered()
		s, _ := openTestSpool(t, dir)
		ctx, cancel := context.WithCancel(t.Context())
		go s.run(ctx)
		require.NoError(t, put(t, s, 4, "waits"))
		cancel()
		damage(t, dir, "seq", "seq-copy")
		s, _ = openTestSpool(t, dir)
		require.NoError(t, s.unknown)
		assert.EqualValues(t, 4, s.last, "its name tells")
	})
	t.Run("of version 1", func(t *testing.T) {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "seq"), []byte("41\n"), 0o600))
		s, _ := openTestSpool(t, dir)
		require.NoError(t, s.unknown)
		assert.EqualValues(t, 41, s.last)
	})
}

func FuzzSeqFile(f *testing.F) {
	f.Add([]byte(seqLine(41)), false)
	f.Add([]byte("41\n"), true)
	f.Add([]byte("41"), false)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte, plain bool) {
		name := filepath.Join(dir, "seq")
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if seq, err := readSeqFile(name, plain); err == nil && !plain && string(data) != seqLine(seq) {
			t.Fatalf("took %q", data)
		}
	})
}

func TestSpoolHoldsNoClearText(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lamp")
	s, _ := openTestSpool(t, dir)
	go s.run(t.Context())
	require.NoError(t, put(t, s, 0, "canary-of-the-citizens"))
	require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		assert.NotContains(t, string(data), "canary")
		return err
	}))
}

func TestFullSpoolDropsTheOldest(t *testing.T) {
	s, _ := openTestSpool(t, filepath.Join(t.TempDir(), "lamp"))
	var files []batchFile
	for i := range 5 {
		name := filepath.Join(s.dir, fmt.Sprintf("%020d-x-%d.age", i, i))
		require.NoError(t, os.WriteFile(name, nil, 0o600))
		files = append(files, batchFile{name, maxSpoolBytes / 3})
	}
	rest, dropped, err := s.trim(files)
	require.NoError(t, err)
	assert.Equal(t, 2, dropped)
	assert.Equal(t, files[2:], rest)
}

func TestSpoolCutsLeaveNoRubbish(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lamp")
	s, _ := openTestSpool(t, dir)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "1-x-9.age.tmp-1"), []byte("half"), 0o600))
	files, err := s.files()
	require.NoError(t, err)
	assert.Empty(t, files)
	require.NoError(t, s.clean())
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, entries)
}

func TestDamagedBatchesDoNotBlockTheRest(t *testing.T) {
	s, _ := openTestSpool(t, filepath.Join(t.TempDir(), "lamp"))
	good, huge := []byte("good"), filepath.Join(s.dir, "2-x-2.age")
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "1-x-1.age"), nil, 0o600))
	require.NoError(t, os.WriteFile(huge, nil, 0o600))
	require.NoError(t, os.Truncate(huge, 5<<20)) // over the limit of a batch
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "3-x-3.age"), []byte("bad"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "4-x-4.age"), good, 0o600))
	cloud := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || !bytes.Equal(body, good) {
			http.Error(w, "batch: not encrypted to this cloud", http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	defer cloud.Close()
	n := &node{log: slog.New(slog.DiscardHandler), transport: &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, cloud.Listener.Addr().String())
	}}}
	sent, err := n.deliver(t.Context(), s)
	require.NoError(t, err)
	assert.Equal(t, 1, sent)
	files, err := s.files()
	require.NoError(t, err)
	assert.Empty(t, files)
	aside, err := filepath.Glob(filepath.Join(s.dir, "*.bad"))
	require.NoError(t, err)
	assert.Len(t, aside, 3, "nothing is thrown away")
	again, _ := openTestSpool(t, s.dir)
	assert.EqualValues(t, 4, again.last)
}

// sensorNode is a node with a sensors' socket and two streams.
func sensorNode(t *testing.T) (*node, func(lines string) []taken) {
	dir := t.TempDir()
	n := &node{log: slog.New(slog.DiscardHandler), spools: map[string]*spool{}, cfg: &config{
		State: dir, Sensors: filepath.Join(dir, "sensors.sock"), Streams: []stream{{Name: "lamp"}},
	}}
	s, _ := openTestSpool(t, filepath.Join(dir, "lamp"))
	n.spools["lamp"] = s
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go s.run(ctx)
	go func() { n.takeReadings(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	require.Eventually(t, func() bool { _, err := os.Stat(n.cfg.Sensors); return err == nil }, 5*time.Second, 5*time.Millisecond)
	return n, func(lines string) []taken {
		conn, err := net.Dial("unix", n.cfg.Sensors)
		require.NoError(t, err)
		defer conn.Close()
		if _, err = io.WriteString(conn, lines); err == nil {
			err = conn.(*net.UnixConn).CloseWrite()
		}
		if err != nil { // who is refused may be gone before all is written; what he was answered is judged
			require.True(t, errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ENOTCONN) || errors.Is(err, syscall.ECONNRESET), err)
		}
		var out []taken
		for in := bufio.NewScanner(conn); in.Scan(); {
			var a taken
			require.NoError(t, json.Unmarshal(in.Bytes(), &a))
			out = append(out, a)
		}
		return out
	}
}

func TestSensorsGetAnAnswerForEachLine(t *testing.T) {
	_, say := sensorNode(t)
	got := say(`{"stream":"lamp","seq":1,"value":{"lux":20}}` + "\n" +
		`{"stream":"lamp","seq":2,"time":"2026-11-23T00:00:00Z","value":21}` + "\n" +
		`{"stream":"other","seq":3,"value":1}` + "\n" +
		`{"stream":"lamp","seq":4}` + "\n" +
		`{"stream":"lamp","tenant":"x","value":1}` + "\n" +
		`nonsense` + "\n")
	require.Len(t, got, 6)
	assert.True(t, got[0].OK && got[1].OK)
	assert.EqualValues(t, 2, got[1].Seq)
	for i, says := range map[int]string{2: "not in this node's configuration", 3: "value of 0 bytes", 4: "unknown field", 5: "invalid character"} {
		assert.False(t, got[i].OK)
		assert.Contains(t, got[i].Error, says)
	}
}

func TestSensorThatLostCountIsTold(t *testing.T) {
	_, say := sensorNode(t)
	for _, a := range say(`{"stream":"lamp","seq":40,"value":1}` + "\n") {
		assert.Zero(t, a.Last)
	}
	got := say(`{"stream":"lamp","seq":1,"value":"of after a restart"}` + "\n")
	require.Len(t, got, 1)
	assert.True(t, got[0].OK)
	assert.EqualValues(t, 40, got[0].Last, "go on with 41")
}

func TestSensorsCannotFlood(t *testing.T) {
	n, say := sensorNode(t)
	// A line without an end is cut off; the next connection is served.
	assert.Empty(t, say(`{"stream":"lamp","value":"`+strings.Repeat("x", maxLine)))
	assert.False(t, say(`{"stream":"lamp","value":"` + strings.Repeat("x", maxRecord) + `"}` + "\n")[0].OK)
	// More processes than are allowed are refused, not queued.
	var conns []net.Conn
	for range maxSensors {
		c, err := net.Dial("unix", n.cfg.Sensors)
		require.NoError(t, err)
		defer c.Close()
		conns = append(conns, c)
		_, err = io.WriteString(c, `{"stream":"lamp","value":1}`+"\n")
		require.NoError(t, err)
		_, err = bufio.NewReader(c).ReadBytes('\n')
		require.NoError(t, err)
	}
	assert.Empty(t, say(""), "one too many")
	for _, c := range conns {
		_ = c.Close()
	}
	require.Eventually(t, func() bool {
		got := say(`{"stream":"lamp","value":1}` + "\n")
		return len(got) == 1 && got[0].OK
	}, 5*time.Second, 20*time.Millisecond)
}

func TestRecordsOfAModuleNeedTheModule(t *testing.T) {
	n := &node{cfg: &config{}}
	require.NoError(t, n.allowed(stream{Name: "lamp"}))
	dir := t.TempDir()
	cfg := goodConfig(t)
	cfg["streams"] = []any{map[string]any{"name": "camera", "every_seconds": 1, "bay": "bay-9"}}
	_, err := loadConfig(writeConfig(t, cfg))
	require.ErrorContains(t, err, "bay-9", dir)
}

func TestOneDaemonForAStateDirectory(t *testing.T) {
	dir := t.TempDir()
	first, err := lockState(dir, 0)
	require.NoError(t, err)
	_, err = lockState(dir, 0)
	require.ErrorContains(t, err, dir)
	assert.Equal(t, wire.ExitUnavailable, wire.Report(io.Discard, "node", err))
	require.NoError(t, first.Close())
	second, err := lockState(dir, 0)
	require.NoError(t, err)
	require.NoError(t, second.Close())
}

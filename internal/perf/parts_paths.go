package perf

// paths are updates, tunnels and volumes: what moves or keeps bytes.
func paths() []Part {
	updates := Part{
		Name: "updates", Title: "Updates",
		About: "Install: an image of 500 MiB of random bytes, from a signed local source into the other slot, a file, durable; ours also reads it back and compares, and writes the boot choice; RAUC installs its own bundle format (plain: signature over the whole file) through its service, whose peak memory counts the bundle that it maps. Download: one target of 500 MiB to a file; ours is streamed, durable and renamed into place, go-tuf's holds it in memory. Refresh: a node with a warm cache asks for its own of 100,000 targets, each in a process of its own, start included.",
		Runs: []Run{
			{Dir: "update", Bench: []string{"InstallBesideRAUC"}, Time: "1x"},
			{Dir: "update", Bench: []string{"DownloadFile500MiB", "GoTUFDownload500MiB"}, Time: "1x"},
			{Dir: "update", Bench: []string{"RefreshBesideGoTUF"}, Time: "5x", Rounds: 3},
		},
		Rows: []Row{
			one("install, time", "InstallBesideRAUC", "trusttree", "ns/op", "rauc"),
			one("install, processor time", "InstallBesideRAUC", "trusttree", "cpu-ms/op", "rauc"),
			one("install, peak memory", "InstallBesideRAUC", "trusttree", "peak-MiB", "rauc"),
			{What: "download, time", Ours: "DownloadFile500MiB ns/op", Peers: []Peer{{"go-tuf", "GoTUFDownload500MiB ns/op"}}},
			{What: "download, processor time", Ours: "DownloadFile500MiB cpu-ms/op", Peers: []Peer{{"go-tuf", "GoTUFDownload500MiB cpu-ms/op"}}},
			{What: "download, peak memory", Ours: "DownloadFile500MiB peak-MiB", Peers: []Peer{{"go-tuf", "GoTUFDownload500MiB peak-MiB"}}},
			one("refresh, processor time", "RefreshBesideGoTUF", "trusttree", "cpu-ms/op", "go-tuf"),
			one("refresh, peak memory", "RefreshBesideGoTUF", "trusttree", "peak-MiB", "go-tuf"),
		},
		Bars: []Bar{
			{What: "install of 500 MiB, processor time", Figure: "InstallBesideRAUC/trusttree cpu-ms/op", Unit: "ms", AtMost: true, Target: 1300},
			{What: "install of 500 MiB, peak memory", Figure: "InstallBesideRAUC/trusttree peak-MiB", Unit: "MiB", AtMost: true, Target: 32},
			{What: "download of 500 MiB to a file, processor time", Figure: "DownloadFile500MiB cpu-ms/op", Unit: "ms", AtMost: true, Target: 1300},
			{What: "download of 500 MiB to a file, peak memory", Figure: "DownloadFile500MiB peak-MiB", Unit: "MiB", AtMost: true, Target: 32},
			{What: "warm refresh against 100,000 targets, processor time", Figure: "RefreshBesideGoTUF/trusttree cpu-ms/op", Unit: "ms", AtMost: true, Target: 100},
			{What: "warm refresh against 100,000 targets, peak memory", Figure: "RefreshBesideGoTUF/trusttree peak-MiB", Unit: "MiB", AtMost: true, Target: 25},
		},
	}

	tunnels := Part{
		Name: "tunnels", Title: "Tunnels",
		About: "Relays as pairs of processes on one machine: application, client end, TLS 1.3 with certificates of both sides, server end, destination; the load and the destination run on the same cores. Ours reads policies and writes flow records; plain takes a TLS connection for each, mux takes one for all. The bare relay is crypto/tls and io.Copy, with no policy and no record. New connections are full handshakes everywhere (no resumption).",
		Runs: []Run{
			{Dir: "tlsconn/internal/interop", Bench: []string{"Relay"}, Time: "1x"},
			{Dir: "tlsconn/internal/interop", Bench: []string{"IdleRelay", "ProbeBesideBulk"}, Time: "1x", Rounds: 2},
			{Dir: "tlsconn", Bench: []string{"Dial", "Bulk"}, Time: "0.3s", Rounds: 3},
		},
		Absent: map[string]string{"ghostunnel": "not available: no Debian package, and the Go module proxy refuses the module; it is measured where the program is in PATH"},
	}
	peers := []string{"bare-crypto-tls", "stunnel", "haproxy", "ghostunnel"}
	for _, m := range []struct{ what, unit string }{
		{"bulk over 1 connection", "bulk1-GB/s"}, {"bulk over 64 connections", "bulk64-GB/s"},
		{"processor time of a GB over 1 connection", "cpu1-s/GB"}, {"processor time of a GB over 64", "cpu64-s/GB"},
		{"request and response, p50", "rr-p50-us"}, {"request and response, p99", "rr-p99-us"},
		{"new connections a second", "conn/s"}, {"processor time of a connection", "conn-cpu-us"},
	} {
		for _, ours := range []string{"plain", "mux"} {
			tunnels.Rows = append(tunnels.Rows, one(m.what+", "+ours, "Relay", "trusttree-"+ours, m.unit, peers...))
		}
	}
	for _, ours := range []string{"plain", "mux"} {
		tunnels.Rows = append(tunnels.Rows, one("memory of 1,000 idle connections, "+ours, "IdleRelay", "trusttree-"+ours, "idle-MB", peers...))
	}
	of := func(unit string, names ...string) (out []string) {
		for _, n := range names {
			out = append(out, "Relay/"+n+" "+unit)
		}
		return out
	}
	all := []string{"bare-crypto-tls", "stunnel", "haproxy"}
	for _, b := range []struct {
		what, ours, unit string
		over             []string
		atMost           bool
		target           float64
	}{
		{"bulk over 1 connection, plain by the best peer", "plain", "bulk1-GB/s", all, false, 1.15},
		{"bulk over 64 connections, plain by the best peer", "plain", "bulk64-GB/s", all, false, 1.25},
		{"processor time of a GB over 1, plain by stunnel", "plain", "cpu1-s/GB", []string{"stunnel"}, true, 0.8},
		{"processor time of a GB over 64, plain by stunnel", "plain", "cpu64-s/GB", []string{"stunnel"}, true, 0.8},
		{"processor time of a GB over 1, plain by the bare relay", "plain", "cpu1-s/GB", []string{"bare-crypto-tls"}, true, 0.95},
		{"processor time of a GB over 64, plain by the bare relay", "plain", "cpu64-s/GB", []string{"bare-crypto-tls"}, true, 0.95},
		{"bulk over 1 connection, mux by the bare relay", "mux", "bulk1-GB/s", []string{"bare-crypto-tls"}, false, 0.9},
		{"bulk over 64 connections, mux by the bare relay", "mux", "bulk64-GB/s", []string{"bare-crypto-tls"}, false, 0.9},
		{"new connections a second, mux by the bare relay", "mux", "conn/s", []string{"bare-crypto-tls"}, false, 4},
		{"new connections a second, mux by stunnel", "mux", "conn/s", []string{"stunnel"}, false, 7},
		{"request and response p50, plain by the best peer", "plain", "rr-p50-us", all, true, 1.1},
		{"request and response p50, mux by the best peer", "mux", "rr-p50-us", all, true, 1.1},
	} {
		tunnels.Bars = append(tunnels.Bars, Bar{What: b.what, Figure: "Relay/trusttree-" + b.ours + " " + b.unit, Over: of(b.unit, b.over...), Unit: "×", AtMost: b.atMost, Target: b.target})
	}
	tunnels.Bars = append(tunnels.Bars,
		Bar{What: "1,000 idle connections, plain, both ends", Figure: "IdleRelay/trusttree-plain idle-MB", Unit: "MB", AtMost: true, Target: 100},
		Bar{What: "1,000 idle connections, mux, both ends", Figure: "IdleRelay/trusttree-mux idle-MB", Unit: "MB", AtMost: true, Target: 100},
		Bar{What: "probe stream beside four bulk streams, p99", Figure: "ProbeBesideBulk probe-p99-ms", Unit: "ms", AtMost: true, Target: 25})
	return []Part{updates, tunnels, volumes()}
}

func volumes() Part {
	p := Part{
		Name: "volumes", Title: "Volumes",
		About: "Files on an ext4 file system in memory, so that no disk hides the work. Portable mode keeps encrypted, authenticated files on any file system; kernel mode is Linux fscrypt under our sealed key, and beside it the same policy set by hand. Streams are 64 MiB, small files 4 KiB; every write ends with fsync, creates with an fsync of the directory too. age reads and writes streams alone. Neither ext4 nor kernel encryption authenticates what it reads.",
		Runs: []Run{
			{Dir: "fscrypt", Bench: []string{"StreamWrite", "StreamRead", "CreateSmall", "OpenReadSmall", "RandomRead"}, Time: "0.3s", Volume: true},
			{Dir: "fscrypt", Bench: []string{"FileSystem"}, Time: "0.3s", Volume: true},
			{Dir: "fscrypt", Bench: []string{"Unlock"}, Time: "0.3s"},
		},
		Bars: []Bar{
			{What: "stream write, age's time by ours", Figure: "StreamWrite/age ns/op", Over: []string{"StreamWrite/fscrypt ns/op"}, Unit: "×", Target: 0.95},
			{What: "stream read, age's time by ours", Figure: "StreamRead/age ns/op", Over: []string{"StreamRead/fscrypt ns/op"}, Unit: "×", Target: 1},
			{What: "durable creates of 4 KiB, gocryptfs' time by ours", Figure: "CreateSmall/gocryptfs ns/op", Over: []string{"CreateSmall/fscrypt ns/op"}, Unit: "×", Target: 2.5},
			{What: "open and read 4 KiB, gocryptfs' time by ours", Figure: "OpenReadSmall/gocryptfs ns/op", Over: []string{"OpenReadSmall/fscrypt ns/op"}, Unit: "×", Target: 3},
			{What: "random reads of 4 KiB, gocryptfs' time by ours", Figure: "RandomRead/gocryptfs ns/op", Over: []string{"RandomRead/fscrypt ns/op"}, Unit: "×", Target: 1},
			{What: "whole unlock by the bare unseal", Figure: "Unlock/full ns/op", Over: []string{"Unlock/bare ns/op"}, Unit: "×", AtMost: true, Target: 2},
		},
	}
	for _, w := range []struct{ what, portable, fs string }{
		{"stream write", "StreamWrite", "stream-write"}, {"stream read", "StreamRead", "stream-read"},
		{"durable create of 4 KiB", "CreateSmall", "create-small"}, {"open and read 4 KiB", "OpenReadSmall", "open-read-small"},
		{"random read of 4 KiB", "RandomRead", "random-read"},
	} {
		fs := func(n string) string { return "FileSystem/" + w.fs + "/" + n + " ns/op" }
		portable := Row{What: w.what + ", portable mode", Ours: w.portable + "/fscrypt ns/op", Peers: []Peer{{"gocryptfs", fs("gocryptfs")}}}
		if w.portable == "StreamWrite" || w.portable == "StreamRead" {
			portable.Peers = append(portable.Peers, Peer{"age", w.portable + "/age ns/op"})
		}
		portable.Peers = append(portable.Peers, Peer{"kernel fscrypt", fs("kernel-fscrypt")}, Peer{"plain ext4", fs("plain-ext4")})
		p.Rows = append(p.Rows, portable, Row{What: w.what + ", kernel mode", Ours: fs("trusttree-kernel-mode"),
			Peers: []Peer{{"kernel fscrypt", fs("kernel-fscrypt")}, {"plain ext4", fs("plain-ext4")}, {"gocryptfs", fs("gocryptfs")}}})
	}
	p.Rows = append(p.Rows, Row{What: "unlock: signed policy, floor and latch", Ours: "Unlock/full ns/op", Peers: []Peer{{"the bare unseal", "Unlock/bare ns/op"}}})
	return p
}

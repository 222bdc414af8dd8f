package perf

// whole are stores, the software TPM, and node and cloud together.
func whole() []Part {
	stores := Part{
		Name: "stores", Title: "Stores",
		About: "Records of 200 bytes on this machine's disk, every commit durable. The raw engine is go-sqlite3 with its Adiantum VFS, with the same page size, cache, sync mode and statements, taking turns with the store within one benchmark. On PostgreSQL, the store seals each record and serialises writers across processes; its raw peer is pgx with prepared statements on the same server, once a statement at a time and once pipelined. Ours adds tenancy, roles, quotas, sealed records and the audit log to both.",
		Runs: []Run{
			{Dir: "tenantstore", Bench: []string{"ShareBatch", "ShareGet", "GroupCommit"}, Time: "0.7s"},
			{Dir: "tenantstore", Bench: []string{"DurablePut"}, Time: "0.3s"},
			{Dir: "tenantstore", Bench: []string{"CreateTenant"}, Time: "0.5s", Rounds: 3},
			{Dir: "tenantstore", Bench: []string{"PostgreSQL"}, Time: "0.3s"},
		},
		Rows: []Row{
			{What: "batch of 1,000, embedded", Ours: "ShareBatch store/s", Peers: []Peer{{"raw engine", "ShareBatch raw/s"}}},
			{What: "get, embedded", Ours: "ShareGet store/s", Peers: []Peer{{"raw engine", "ShareGet raw/s"}}},
			{What: "durable put, 1 writer, embedded", Ours: "DurablePut/store/writers=1 put/s", Peers: []Peer{{"engine interface", "DurablePut/engine/writers=1 put/s"}}},
			{What: "durable put, 64 writers, embedded", Ours: "DurablePut/store/writers=64 put/s", Peers: []Peer{{"engine interface", "DurablePut/engine/writers=64 put/s"}}},
			{What: "batch of 1,000, PostgreSQL", Ours: "PostgreSQL/batch1000/store ns/op", Peers: []Peer{{"raw", "PostgreSQL/batch1000/raw ns/op"}, {"raw, pipelined", "PostgreSQL/batch1000/raw-pipelined ns/op"}}},
			one("get, PostgreSQL", "PostgreSQL/get", "store", "ns/op", "raw"),
			one("durable put, 1 writer, PostgreSQL", "PostgreSQL/put", "store", "ns/op", "raw"),
			one("durable put, 64 writers, PostgreSQL", "PostgreSQL/put-64-writers", "store", "ns/op", "raw"),
		},
		Bars: []Bar{
			{What: "batch of 1,000, share of the raw engine's rate", Figure: "ShareBatch share", Unit: "×", Target: 0.75},
			{What: "get, share of the raw engine's rate", Figure: "ShareGet share", Unit: "×", Target: 0.8},
			{What: "64 durable writers by one, embedded", Figure: "GroupCommit times", Unit: "×", Target: 8},
			{What: "creating a tenant", Figure: "CreateTenant ns/op", Scale: 1e-6, Unit: "ms", AtMost: true, Target: 60},
		},
	}

	softtpm := Part{
		Name: "softtpm", Title: "Software TPM",
		About: "The TPM in Go that tests and the demo use, beside swtpm on a socket. It protects nothing; its speed is how many nodes a test can have.",
		Runs:  []Run{{Dir: "internal/softtpm", Bench: []string{"New", "QuoteP256", "CreatePrimaryP256", "Unseal", "PCRExtend"}, Time: "0.2s", Rounds: 3}},
		Bars: []Bar{
			{What: "a new TPM with its EK certificate", Figure: "New/softtpm ns/op", Scale: 1e-6, Unit: "ms", AtMost: true, Target: 5},
			{What: "a P-256 quote", Figure: "QuoteP256/softtpm ns/op", Scale: 1e-6, Unit: "ms", AtMost: true, Target: 1},
		},
	}
	for _, b := range softtpm.Runs[0].Bench {
		softtpm.Rows = append(softtpm.Rows, one(b, b, "softtpm", "ns/op", "swtpm"))
	}

	apps := Part{
		Name: "apps", Title: "Node and cloud together",
		About: "The real cloud process on this machine, with 64 nodes that attest over their tunnels, and telemetry of 100 tenants in batches of 100 records that are acknowledged when durable. The nodes run on the same cores. Nobody else does the same, so there is no peer.",
		Runs: []Run{
			{Dir: "internal/e2e", Bench: []string{"Attestations"}, Time: "3000x", Rounds: 2, Short: true},
			{Dir: "internal/e2e", Bench: []string{"Telemetry"}, Time: "1500x", Rounds: 2, Short: true},
		},
		Bars: []Bar{
			{What: "attestations a second", Figure: "Attestations attestations/s", Target: 500},
			{What: "attestation, p99", Figure: "Attestations p99-ms", Unit: "ms", AtMost: true, Target: 250},
			{What: "telemetry records a second", Figure: "Telemetry records/s", Target: 10000},
		},
	}
	return []Part{stores, softtpm, apps}
}

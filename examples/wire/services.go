package wire

import "time"

// Names of the services that the gateway serves itself, over the tunnel.
const (
	ServiceIngest = "ingest" // HTTP: POST /v1/ingest
	ServiceTUF    = "tuf"    // HTTP: GET of the TUF repository's files
	ServiceKeys   = "keys"   // HTTP: POST /v1/share, the data volume's share
	ServiceReport = "report" // HTTP: POST /v1/report/begin gives a nonce, POST /v1/report takes a SoftwareReport; GET PathModuleList
)

// PathModuleList is where a node gets the newest list of revoked modules: at
// ServiceReport, and at the enrolment service while it has no tunnel, because a
// node whose list is out of date may lack the modules that a tunnel demands. The
// list proves itself by the owner's signature. Its entity tag is its sequence.
const PathModuleList = "/v1/module-revocations"

// MaxModuleList bounds a signed list of revoked modules, in bytes.
const MaxModuleList = 1 << 20

// Media types of what a node adds to its evidence.
const (
	TypeEventLog = "application/vnd.trusttree.tcg-event-log" // the firmware's log, binary
	TypeIMALog   = "application/vnd.trusttree.ima-log"       // binary_runtime_measurements
)

// Parts of a release that go to the appraiser and to the sealer, not to a slot.
const (
	PartImage     = "image"            // what the slot boots
	PartReference = "reference-values" // signed appraisal policy of the next boot
	PartPolicy    = "pcr-policy"       // signed PCR policies of the next boot
)

// MaxBatch bounds one batch of telemetry, in bytes.
const MaxBatch = 1 << 20

// Batch is one delivery of telemetry of one stream. ID never repeats for
// another batch of that stream, so that a batch sent again counts once.
type Batch struct {
	Version int      `json:"version"` // 1
	ID      string   `json:"id"`
	Stream  string   `json:"stream"`
	Records []Sample `json:"records"`
}

// Sample is one record of telemetry.
type Sample struct {
	Time  time.Time `json:"time"`
	Value []byte    `json:"value"`
}

// Verdict closes the exchange on the attestation stream; it comes in place of
// the challenge when there is none for this node.
type Verdict struct {
	Version int       `json:"version"` // 1
	OK      bool      `json:"ok"`
	Until   time.Time `json:"until,omitzero"`
	Reason  string    `json:"reason,omitempty"`
	Enroll  bool      `json:"enroll,omitempty"` // the cloud does not know the node's certificate (any more): enrol
}

// SoftwareReport is what a node says about its software.
type SoftwareReport struct {
	Version int    `json:"version"` // 1
	Running string `json:"running"` // version of what runs
	Signed  []byte `json:"signed"`  // update.SignReport, over the nonce, by the node's certified key
}

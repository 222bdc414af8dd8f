package moduleid

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// celContentType marks our records in a Canonical Event Log.
const celContentType = "trusttree_modules"

// maxRecords bounds the log: a node whose modules come and go more often
// before it boots again admits no further one.
const maxRecords = 1024

// record is one extend of the application PCR, in the JSON encoding of the TCG
// Canonical Event Log 1.0.
type record struct {
	RecNum      int         `json:"recnum"`
	PCR         int         `json:"pcr"`
	Digests     []celDigest `json:"digests"`
	ContentType string      `json:"content_type"`
	Content     Snapshot    `json:"content"`
}

type celDigest struct {
	HashAlg string `json:"hashAlg"`
	Digest  string `json:"digest"`
}

// banks are the hash algorithms that a PCR may have here, with the names of
// the TCG algorithm registry.
var banks = []struct {
	hash crypto.Hash
	name string
}{{crypto.SHA256, "sha256"}, {crypto.SHA384, "sha384"}, {crypto.SHA512, "sha512"}}

func bankName(h crypto.Hash) string {
	for _, b := range banks {
		if b.hash == h {
			return b.name
		}
	}
	return ""
}

// celLog is the sequence of inventories that were measured since boot.
type celLog struct {
	node    string
	pcr     int
	records []record
}

// append adds an inventory and returns its digests by bank.
func (l *celLog) append(s Snapshot, hashes []crypto.Hash) (map[crypto.Hash][]byte, error) {
	if len(l.records) >= maxRecords {
		return nil, fmt.Errorf("moduleid: the inventory changed %d times since boot; reboot the node to admit more modules", maxRecords)
	}
	r := record{RecNum: len(l.records), PCR: l.pcr, ContentType: celContentType, Content: s}
	digests := make(map[crypto.Hash][]byte, len(hashes))
	for _, h := range hashes {
		digests[h] = s.Digest(h, l.node)
		r.Digests = append(r.Digests, celDigest{bankName(h), hex.EncodeToString(digests[h])})
	}
	l.records = append(l.records, r)
	return digests, nil
}

func (l *celLog) last() Snapshot {
	if len(l.records) == 0 {
		return nil
	}
	return l.records[len(l.records)-1].Content
}

// replay returns the value that the PCR of a bank has after the first n
// records.
func (l *celLog) replay(bank crypto.Hash, n int) ([]byte, error) {
	value := make([]byte, bank.Size())
	for _, r := range l.records[:n] {
		d := slices.IndexFunc(r.Digests, func(d celDigest) bool { return d.HashAlg == bankName(bank) })
		if d < 0 {
			return nil, fmt.Errorf("record %d of the inventory's log has no %s digest", r.RecNum, bankName(bank))
		}
		b, err := hex.DecodeString(r.Digests[d].Digest)
		if err != nil {
			return nil, err
		}
		w := bank.New()
		w.Write(value)
		w.Write(b)
		value = w.Sum(nil)
	}
	return value, nil
}

// check refuses a log whose digests are not those of its contents, or that is
// not one sequence for one PCR.
func (l *celLog) check() error {
	if len(l.records) > maxRecords {
		return fmt.Errorf("the inventory's log has %d records; the limit is %d", len(l.records), maxRecords)
	}
	for i, r := range l.records {
		if r.RecNum != i || r.PCR != l.pcr || r.ContentType != celContentType {
			return fmt.Errorf("record %d of the inventory's log has number %d, PCR %d, content type %.40q; expected are %d, %d, %q", i, r.RecNum, r.PCR, r.ContentType, i, l.pcr, celContentType)
		}
		if err := r.Content.check(); err != nil {
			return fmt.Errorf("record %d of the inventory's log: %w", i, err)
		}
		seen := map[string]bool{}
		for _, d := range r.Digests {
			b := slices.IndexFunc(banks, func(b struct {
				hash crypto.Hash
				name string
			}) bool {
				return b.name == d.HashAlg
			})
			if b < 0 || seen[d.HashAlg] {
				return fmt.Errorf("record %d of the inventory's log: digest of unknown or repeated algorithm %.20q", i, d.HashAlg)
			}
			seen[d.HashAlg] = true
			if d.Digest != hex.EncodeToString(r.Content.Digest(banks[b].hash, l.node)) {
				return fmt.Errorf("record %d of the inventory's log: the %s digest is not that of its content", i, d.HashAlg)
			}
		}
	}
	return nil
}

// marshal writes the log as JSON lines, one record each.
func (l *celLog) marshal() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for _, r := range l.records {
		if err := enc.Encode(r); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

const maxLog = 64 << 20

// parseLog reads what marshal wrote. A last line that was cut off by a power
// cut is dropped: it was never extended.
func parseLog(data []byte, node string, pcr int) (*celLog, error) {
	if len(data) > maxLog {
		return nil, fmt.Errorf("the inventory's log has %d bytes; the limit is %d", len(data), maxLog)
	}
	l := &celLog{node: node, pcr: pcr}
	for len(data) > 0 {
		line, rest, whole := bytes.Cut(data, []byte("\n"))
		if !whole {
			break
		}
		data = rest
		var r record
		d := json.NewDecoder(bytes.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&r); err != nil {
			return nil, fmt.Errorf("line %d of the inventory's log: %w", len(l.records)+1, err)
		}
		if d.More() {
			return nil, errors.New("data after a record of the inventory's log")
		}
		l.records = append(l.records, r)
	}
	return l, l.check()
}

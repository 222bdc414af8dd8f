package tenantstore

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/time/rate"

	"github.com/trusttree/trusttree/tenantstore/internal/auditlog"
	"github.com/trusttree/trusttree/tenantstore/internal/xaes"
)

// Event is one entry of a tenant's audit trail.
type Event struct {
	Time    time.Time `json:"time"`
	Action  string    `json:"action"`            // "create", "get", "authenticate", …
	Outcome string    `json:"outcome,omitempty"` // "denied", "failed"; empty: allowed
	Subject string    `json:"subject,omitempty"`
	Stream  string    `json:"stream,omitempty"`
	Tenant  ID        `json:"tenant,omitempty"`
	UID     UID       `json:"uid"`
	// Collection and Count are set for accesses, which are counted for each
	// principal, collection and action over a few seconds.
	Collection string `json:"collection,omitempty"`
	Count      int64  `json:"count,omitempty"`
	Detail     string `json:"detail,omitempty"` // key names, reasons; no secret, no record
	// Log is the log it was read from, in an AuditTrail.
	Log string `json:"-"`
}

// auditLeaf is what the log commits to: nothing in it names a tenant to who
// does not hold the store's pseudonym key, or says what happened to who has
// not the event and its salt.
type auditLeaf struct {
	Version int       `json:"v"`
	Seq     int64     `json:"seq"`
	Time    time.Time `json:"time"`
	Who     string    `json:"who"`  // HMAC pseudonym of the tenant's UID
	N       int64     `json:"n"`    // number among the leaves of this pseudonym, from 1
	Hash    string    `json:"hash"` // SHA-256 of salt and event
}

// trail is whose event it is: the UID and the key that seals the body.
type trail struct {
	uid  UID
	seal *sealer
}

const (
	accessInterval = 5 * time.Second // accesses are written this late at most
	maxAccess      = 4096            // distinct counters; beyond it they are written at once
	saltSize       = 16
)

type accessKey struct {
	uid                                 UID
	subject, stream, action, collection string
	id                                  ID
}

type access struct {
	trail trail
	count int64
}

// auditor writes the store's Merkle log.
type auditor struct {
	log      *auditlog.Log
	verifier note.Verifier
	store    UID
	pseud    []byte
	now      func() time.Time
	slog     *slog.Logger

	serial uint64 // of the assignments that the log saw last; set while it is opened

	mu      sync.Mutex
	n       map[string]int64 // leaves by pseudonym; also guards the order of appends
	pending map[accessKey]*access
	timer   *time.Timer
	failed  error // accesses could not be written

	single  *rate.Limiter        // of refusals written each by itself
	refused map[refusedKey]int64 // counted since
	system  trail
}

// Refusals beyond this rate are counted, as accesses are: who is refused again
// and again fills neither the disk of the log nor the time of the others.
const (
	refusalsPerSec = 10
	refusalsBurst  = 200
	maxRefused     = 32 // distinct counters; beyond it subjects are one
)

type refusedKey struct{ subject, action, outcome string }

func openAuditor(dir string, store UID, system trail, signer note.Signer, verifier note.Verifier, pseudonym []byte, now func() time.Time, lg *slog.Logger) (*auditor, error) {
	a := &auditor{verifier: verifier, store: store, pseud: pseudonym, now: now, slog: lg, n: map[string]int64{}, pending: map[accessKey]*access{},
		single: rate.NewLimiter(refusalsPerSec, refusalsBurst), refused: map[refusedKey]int64{}}
	log, err := auditlog.Open(dir, signer, verifier, func(e auditlog.Entry) error {
		var l auditLeaf
		if err := strictJSON(e.Leaf, &l); err != nil {
			return fmt.Errorf("%w: audit leaf: %w", ErrTampered, err)
		}
		a.n[l.Who] = l.N
		if l.Who == a.who(system.uid) {
			return a.replay(system, e)
		}
		return nil
	})
	if errors.Is(err, auditlog.ErrTampered) {
		err = fmt.Errorf("%w: %w", ErrTampered, err)
	}
	a.log = log
	return a, err
}

// replay reads what the log says about the state that the store must be in.
func (a *auditor) replay(system trail, e auditlog.Entry) error {
	plain, err := a.openBody(system, e)
	if err != nil {
		return err
	}
	var ev Event
	if err := strictJSON(plain[saltSize:], &ev); err != nil {
		return fmt.Errorf("%w: audit entry %d: %w", ErrTampered, e.Seq, err)
	}
	if ev.Action == actionAssigned && ev.Outcome == "" {
		if _, err := fmt.Sscanf(ev.Detail, "serial %d", &a.serial); err != nil {
			return fmt.Errorf("%w: audit entry %d: %w", ErrTampered, e.Seq, err)
		}
	}
	return nil
}

// openBody decrypts an entry's body: salt and event.
func (a *auditor) openBody(t trail, e auditlog.Entry) ([]byte, error) {
	if len(e.Body) < xaes.NonceSize+saltSize+xaes.Overhead {
		return nil, fmt.Errorf("%w: audit entry %d", ErrTampered, e.Seq)
	}
	plain, err := t.seal.audit.Open(nil, e.Body[:xaes.NonceSize], e.Body[xaes.NonceSize:], bodyAAD(a.store, t.uid, e.Seq))
	if err != nil {
		return nil, fmt.Errorf("%w: audit entry %d does not authenticate", ErrTampered, e.Seq)
	}
	return plain, nil
}

func (a *auditor) who(uid UID) string {
	m := hmac.New(sha256.New, a.pseud)
	_, _ = m.Write(uid[:])
	return hex.EncodeToString(m.Sum(nil)[:16])
}

func bodyAAD(store, uid UID, seq int64) []byte {
	return fmt.Appendf(nil, "trusttree tenantstore audit v1 %x %x %d", store[:], uid[:], seq)
}

// write appends events in order and syncs.
func (a *auditor) write(trails []trail, events []Event) error {
	counted := map[string]int64{}
	err := a.log.Append(len(events), func(i int, seq int64) ([]byte, []byte, error) {
		e, t := events[i], trails[i]
		e.UID = t.uid
		text, err := json.Marshal(e)
		if err != nil {
			return nil, nil, err
		}
		body := make([]byte, xaes.NonceSize+saltSize, xaes.NonceSize+saltSize+len(text)+xaes.Overhead)
		_, _ = rand.Read(body)
		h := sha256.Sum256(append(body[xaes.NonceSize:len(body):len(body)], text...))
		body = append(body, text...)
		who := a.who(t.uid)
		counted[who]++
		leaf, err := json.Marshal(auditLeaf{Version: 1, Seq: seq, Time: e.Time, Who: who, N: a.n[who] + counted[who], Hash: hex.EncodeToString(h[:])})
		plain := body[xaes.NonceSize:]
		t.seal.audit.Seal(plain[:0], body[:xaes.NonceSize], plain, bodyAAD(a.store, t.uid, seq))
		return leaf, body[:len(body)+xaes.Overhead], err
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrAudit, err)
	}
	for who, c := range counted {
		a.n[who] += c
	}
	return nil
}

// refusal writes one event of a denial or failure, or counts it when there are
// too many.
func (a *auditor) refusal(ctx context.Context, system trail, e Event) error {
	if a.single.Allow() {
		return a.record(ctx, system, e)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failed != nil {
		return a.failed
	}
	k := refusedKey{clip(e.Subject), e.Action, e.Outcome}
	if _, ok := a.refused[k]; !ok && len(a.refused) >= maxRefused {
		k.subject = "others"
	}
	a.refused[k]++
	a.system = system
	a.arm()
	return nil
}

// record writes one event of the control plane or a denial. Nothing may be
// done when it fails.
func (a *auditor) record(ctx context.Context, t trail, e Event) error {
	if e.Time.IsZero() {
		e.Time = a.now().UTC()
	}
	e.Subject, e.Stream, e.Detail = clip(e.Subject), clip(e.Stream), clipTo(e.Detail, 400)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.flushLocked(); err != nil {
		return fmt.Errorf("%w (it is broken until the store is opened again)", err)
	}
	if err := a.write([]trail{t}, []Event{e}); err != nil {
		a.failed = err
		a.slog.ErrorContext(ctx, "audit log can't be written", "event", "tenantstore.audit_failed", "error", err)
		return err
	}
	a.arm()
	level := slog.LevelInfo
	if e.Outcome != "" {
		level = slog.LevelWarn
	}
	a.slog.Log(ctx, level, "audit", "event", "tenantstore."+strings.ReplaceAll(e.Action, " ", "_"), "outcome", e.Outcome,
		"subject", e.Subject, "stream", e.Stream, "tenant", e.Tenant, "detail", e.Detail)
	return nil
}

// count counts an access; it is written within accessInterval. It fails when
// accesses can't be written: the data plane fails closed too.
func (a *auditor) count(t trail, p Principal, id ID, action, collection string) error {
	k := accessKey{uid: t.uid, subject: p.subject, stream: p.stream, action: action, collection: collection, id: id}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failed != nil {
		return a.failed
	}
	if acc, ok := a.pending[k]; ok {
		acc.trail = t
		acc.count++
		return nil
	}
	if len(a.pending) >= maxAccess {
		if err := a.flushLocked(); err != nil {
			return err
		}
	}
	a.pending[k] = &access{trail: t, count: 1}
	a.arm()
	return nil
}

// arm makes sure that what is pending is written, and what is written is
// signed, within accessInterval. The caller holds a.mu.
func (a *auditor) arm() {
	if a.timer == nil {
		a.timer = time.AfterFunc(accessInterval, func() { _, _, _ = a.checkpoint() })
	}
}

func (a *auditor) flushLocked() error {
	if a.failed != nil || len(a.pending) == 0 && len(a.refused) == 0 {
		return a.failed
	}
	keys := slices.Collect(maps.Keys(a.pending))
	slices.SortFunc(keys, func(x, y accessKey) int {
		return strings.Compare(x.uid.String()+x.subject+x.stream+x.collection+x.action, y.uid.String()+y.subject+y.stream+y.collection+y.action)
	})
	trails, events := make([]trail, len(keys), len(keys)+len(a.refused)), make([]Event, len(keys), len(keys)+len(a.refused))
	for i, k := range keys {
		trails[i] = a.pending[k].trail
		events[i] = Event{Time: a.now().UTC(), Action: k.action, Subject: clip(k.subject), Stream: k.stream, Tenant: k.id,
			Collection: k.collection, Count: a.pending[k].count}
	}
	for k, n := range a.refused {
		trails = append(trails, a.system)
		events = append(events, Event{Time: a.now().UTC(), Action: k.action, Outcome: k.outcome, Subject: k.subject, Count: n,
			Detail: fmt.Sprintf("more than %d a second: counted", refusalsPerSec)})
		a.slog.Warn("refusals that were only counted", "event", "tenantstore.refusals_counted", "action", k.action, "outcome", k.outcome,
			"subject", k.subject, "count", n)
	}
	if err := a.write(trails, events); err != nil {
		a.failed = err
		a.slog.Error("audit log can't be written", "event", "tenantstore.audit_failed", "error", err)
		return err
	}
	clear(a.pending)
	clear(a.refused)
	return nil
}

func (a *auditor) checkpoint() ([]byte, int64, error) {
	b, n, _, err := a.checkpointOf("")
	return b, n, err
}

// checkpointOf also returns the number of leaves of a pseudonym.
func (a *auditor) checkpointOf(who string) ([]byte, int64, int64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.timer != nil {
		a.timer.Stop()
		a.timer = nil
	}
	if err := a.flushLocked(); err != nil {
		return nil, 0, 0, err
	}
	b, n, err := a.log.Checkpoint()
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrAudit, err)
	}
	return b, n, a.n[who], err
}

func (a *auditor) close() error {
	_, _, err := a.checkpoint()
	return errors.Join(err, a.log.Close())
}

// export collects a tenant's events with their proofs in the tree of size n.
func (a *auditor) export(ctx context.Context, t trail, n int64, yield func(auditEntry) error) error {
	who := a.who(t.uid)
	for e, err := range a.log.Entries(n) {
		if err != nil {
			return fmt.Errorf("%w: %w", ErrTampered, err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var l auditLeaf
		if err := strictJSON(e.Leaf, &l); err != nil {
			return fmt.Errorf("%w: audit leaf %d: %w", ErrTampered, e.Seq, err)
		}
		if l.Who != who {
			continue
		}
		plain, err := a.openBody(t, e)
		if err != nil {
			return err
		}
		proof, err := a.log.Prove(n, e.Seq)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrTampered, err)
		}
		if err := yield(auditEntry{Leaf: e.Leaf, Salt: plain[:saltSize], Event: plain[saltSize:], Proof: hashes(proof)}); err != nil {
			return err
		}
	}
	return nil
}

func hashes(p tlog.RecordProof) [][]byte {
	out := make([][]byte, len(p))
	for i := range p {
		out[i] = p[i][:]
	}
	return out
}

func clipTo(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

package update

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/trusttree/trusttree/internal/durable"
)

// InstallerConfig configures NewInstaller. Client, Boot, Slots, Dir and
// Preflight are required.
type InstallerConfig struct {
	// Client fetches parts and keeps the floors.
	Client *Client
	// Boot is the boot loader, Slots the places that parts are written to.
	Boot  BootControl
	Slots Slots
	// Dir holds the installer's state and the opaque parts of both slots.
	Dir string
	// Preflight is called with the release's opaque parts (reference values,
	// the signed PCR policy of the next boot, …) after all parts were
	// verified and before the slot is armed. An error leaves the slot unarmed:
	// this is where an application makes sure that its encrypted volumes will
	// open in the next boot. NoPreflight says that there is nothing to check.
	Preflight func(ctx context.Context, opaque map[string][]byte) error
	// Health are the checks that Confirm runs, in order, before a release is
	// made permanent. HealthTimeout bounds all of them; zero means 5 min.
	Health        []Check
	HealthTimeout time.Duration
	// Tries is how many boots a trial has. Zero means 3: people switch nodes
	// off while they boot.
	Tries int
	// Provenance, when set, is checked before a byte is written.
	Provenance *Provenance
	// Progress, when set, is told of every part's progress in bytes.
	Progress func(part string, done, total int64)
	// Reboot, when set, is called when the node runs a slot that must not
	// stay: after a rollback on trial. Without it State.RebootNeeded says so.
	Reboot func(ctx context.Context) error
}

// Check is a named health check. Run returns nil for healthy and should end
// when ctx does; a check that hangs counts as failed.
type Check struct {
	Name string
	Run  func(ctx context.Context) error
}

// NoPreflight is a Preflight that checks nothing: for nodes whose storage does
// not depend on what they boot.
func NoPreflight(context.Context, map[string][]byte) error { return nil }

// Installer puts releases into the slot that is not running and takes bad ones
// back out. Call Resume first at every boot. Its methods are safe for
// concurrent use and wait for each other.
type Installer struct {
	cfg  InstallerConfig
	log  *slog.Logger
	lock chan struct{} // capacity 1; full while an operation runs
}

// NewInstaller checks the configuration.
func NewInstaller(cfg InstallerConfig) (*Installer, error) {
	switch {
	case cfg.Client == nil:
		return nil, errors.New("update: InstallerConfig.Client is nil")
	case cfg.Boot == nil || cfg.Slots == nil:
		return nil, errors.New("update: InstallerConfig.Boot or Slots is nil")
	case cfg.Dir == "":
		return nil, errors.New("update: InstallerConfig.Dir is empty")
	case cfg.Preflight == nil:
		return nil, errors.New("update: InstallerConfig.Preflight is nil: use NoPreflight if nothing depends on what boots")
	case cfg.Tries < 0 || cfg.Tries > 15:
		return nil, fmt.Errorf("update: InstallerConfig.Tries is %d, want 1 to 15", cfg.Tries)
	case cfg.HealthTimeout < 0:
		return nil, errors.New("update: InstallerConfig.HealthTimeout is negative")
	}
	for _, c := range cfg.Health {
		if c.Run == nil {
			return nil, fmt.Errorf("update: health check %q has no function", c.Name)
		}
	}
	cfg.Tries = or(cfg.Tries, defaultTrys)
	cfg.HealthTimeout = or(cfg.HealthTimeout, 5*time.Minute)
	return &Installer{cfg: cfg, log: cfg.Client.cfg.Logger, lock: make(chan struct{}, 1)}, nil
}

// session is one operation on the installer's state.
type session struct {
	*Installer
	j              *journal
	slots          []SlotStatus
	running, other SlotStatus
	release        func()
}

// begin locks the installer and reads the journal and the boot loader.
func (in *Installer) begin(ctx context.Context) (_ *session, err error) {
	select {
	case in.lock <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("update: wait for the installer: %w", context.Cause(ctx))
	}
	s := &session{Installer: in}
	unlock := func() {}
	s.release = func() { unlock(); <-in.lock }
	defer func() {
		if err != nil {
			s.release()
		}
	}()
	if err := durable.MkdirAll(in.cfg.Dir, 0o700); err != nil {
		return nil, stateError("installer state", err)
	}
	if unlock, err = lockFile(filepath.Join(in.cfg.Dir, "lock")); err != nil {
		unlock = func() {}
		return nil, err
	}
	var lost error
	if s.j, lost, err = loadJournal(in.cfg.Dir); err != nil {
		return nil, err
	}
	if lost != nil {
		in.log.WarnContext(ctx, "installer state is unreadable; starting anew", "event", "update.state.lost", "error", lost.Error())
	}
	if err := s.readBoot(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *session) readBoot(ctx context.Context) (err error) {
	if s.slots, err = s.cfg.Boot.Slots(ctx); err != nil {
		return fmt.Errorf("update: boot control: %w", err)
	}
	if len(s.slots) != 2 || s.slots[0].Running == s.slots[1].Running || s.slots[0].Slot == s.slots[1].Slot {
		return fmt.Errorf("update: boot control: want two slots of which one is running, got %v", s.slots)
	}
	s.running, s.other = s.slots[0], s.slots[1]
	if s.other.Running {
		s.running, s.other = s.other, s.running
	}
	return nil
}

// move goes to a phase and makes that durable.
func (s *session) move(ctx context.Context, to Phase, reason string) error {
	from := s.j.State.Phase
	s.j.State.Phase, s.j.State.Reason = to, reason
	if err := s.j.save(s.cfg.Dir); err != nil {
		return err
	}
	s.log.InfoContext(ctx, "installer moved", "event", "update.phase", "from", string(from), "to", string(to),
		"slot", string(s.j.State.Slot), "release", s.j.State.Release.Name, "reason", reason)
	return nil
}

// State returns the state as Resume, Install, Confirm or Rollback left it.
func (in *Installer) State(ctx context.Context) (State, error) {
	s, err := in.begin(ctx)
	if err != nil {
		return State{}, err
	}
	defer s.release()
	return s.j.State, nil
}

// Resume finds out what the boot made of an installation: call it first at
// every boot. It completes a commit that was cut off, says Trial when the new
// slot runs, and records RolledBack when the boot loader fell back. It never
// arms a slot. Called again, it changes nothing more.
func (in *Installer) Resume(ctx context.Context) (State, error) {
	s, err := in.begin(ctx)
	if err != nil {
		return State{}, err
	}
	defer s.release()
	if err := durable.Clean(in.cfg.Dir); err != nil {
		return State{}, stateError("installer state", err)
	}
	err = s.resume(ctx)
	return s.j.State, err
}

func (s *session) resume(ctx context.Context) error {
	st := &s.j.State
	onNew := st.Slot != "" && s.running.Slot == st.Slot
	switch st.Phase {
	case Idle, Committed, RolledBack:
		return s.resumeAtRest(ctx)
	case Writing:
		if onNew {
			return s.fallBack(ctx, "a slot that was not verified was booted")
		}
		return nil
	case Verified, Armed:
		switch {
		case onNew:
			return s.move(ctx, Trial, "")
		case s.other.Tries > 0 && st.Phase == Verified:
			return s.move(ctx, Armed, "")
		case s.other.Tries > 0:
			return nil
		case st.Phase == Verified: // the power was cut before Arm
			return s.move(ctx, Writing, "")
		}
		return s.fallBack(ctx, "the boot loader fell back: the release did not come up")
	case Trial:
		if onNew {
			return nil
		}
		if s.other.Tries > 0 {
			return s.move(ctx, Armed, "")
		}
		return s.fallBack(ctx, "the boot loader fell back: the release was not confirmed")
	case Committing:
		if onNew || s.other.Good {
			return s.commit(ctx)
		}
		return s.fallBack(ctx, "the boot loader fell back before the commit")
	}
	return fmt.Errorf("update: installer state: phase %q is not known", st.Phase)
}

// resumeAtRest handles a slot that runs or may run though nothing is being
// installed: its state was lost, or a rollback was cut off.
func (s *session) resumeAtRest(ctx context.Context) error {
	switch {
	case !s.running.Good:
		if s.j.State.Slot = s.running.Slot; s.j.State.Phase != RolledBack {
			s.j.State.Release = Installed{} // whatever runs, it is not what was committed
		}
		return s.fallBack(ctx, or(s.j.State.Reason, "a slot is on trial that no installation knows of"))
	case s.other.Tries > 0:
		if err := s.cfg.Boot.Invalidate(ctx, s.other.Slot); err != nil {
			return fmt.Errorf("update: boot control: %w", err)
		}
	}
	if s.j.State.RebootNeeded {
		s.j.State.RebootNeeded = false
		return s.j.save(s.cfg.Dir)
	}
	return nil
}

// fallBack takes the slot out of service, remembers the release as failed, and
// asks for a reboot when it is running.
func (s *session) fallBack(ctx context.Context, reason string) error {
	st := &s.j.State
	if s.running.Slot == st.Slot && !s.other.Good {
		return fmt.Errorf("update: slot %s is on trial and slot %s is not good: there is nothing to fall back to (%s)", s.running.Slot, s.other.Slot, reason)
	}
	if err := s.cfg.Boot.Invalidate(ctx, st.Slot); err != nil {
		return fmt.Errorf("update: boot control: %w", err)
	}
	st.RebootNeeded = s.running.Slot == st.Slot
	delete(st.Slots, st.Slot)
	if st.Release.SHA256 != "" {
		st.remember(Failure{Name: st.Release.Name, SHA256: st.Release.SHA256, Reason: reason, Time: s.cfg.Client.cfg.Now().UTC()})
	}
	s.j.Done, s.j.Commit = nil, Floors{}
	if err := s.move(ctx, RolledBack, reason); err != nil {
		return err
	}
	if st.RebootNeeded && s.cfg.Reboot != nil {
		if err := s.cfg.Reboot(ctx); err != nil {
			return fmt.Errorf("update: reboot: %w", err)
		}
	}
	return nil
}

// Confirm runs the health checks of a release on trial. When all pass it makes
// the slot permanent and then raises the floors. When one fails, or they take
// longer than HealthTimeout, it rolls back and returns ErrHealth. It returns
// ErrNotTrial when no release is on trial.
func (in *Installer) Confirm(ctx context.Context) error {
	s, err := in.begin(ctx)
	if err != nil {
		return err
	}
	defer s.release()
	if s.j.State.Phase == Committing {
		return s.commit(ctx)
	}
	if s.j.State.Phase != Trial || s.running.Slot != s.j.State.Slot {
		return refuse(ErrNotTrial, "installer", "phase %s, slot %s runs: call Resume after the boot", s.j.State.Phase, s.running.Slot)
	}
	if err := s.healthy(ctx); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("update: health checks: %w", context.Cause(ctx))
		}
		return errors.Join(err, s.fallBack(ctx, err.Error()))
	}
	if err := s.move(ctx, Committing, ""); err != nil {
		return err
	}
	return s.commit(ctx)
}

func (s *session) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.HealthTimeout)
	defer cancel()
	for _, c := range s.cfg.Health {
		result := make(chan error, 1)
		go func() {
			defer func() {
				if r := recover(); r != nil {
					result <- fmt.Errorf("panic: %v", r)
				}
			}()
			result <- c.Run(ctx)
		}()
		var err error
		select {
		case err = <-result:
		case <-ctx.Done():
			err = fmt.Errorf("no answer within %v", s.cfg.HealthTimeout)
		}
		if err != nil {
			return refuseErr(ErrHealth, "check "+c.Name, err)
		}
	}
	return nil
}

// commit is idempotent: it is repeated until all of it is done. The floors rise
// last but for the record of it, so that no floor is above what was committed.
func (s *session) commit(ctx context.Context) error {
	st := &s.j.State
	if err := s.cfg.Boot.MarkGood(ctx, st.Slot); err != nil {
		return fmt.Errorf("update: boot control: %w", err)
	}
	if err := s.cfg.Client.cfg.Floors.Raise(ctx, s.j.Commit); err != nil {
		return fmt.Errorf("update: slot %s is permanent, but the floors did not rise (Resume tries again): %w", st.Slot, err)
	}
	if st.Slots == nil {
		st.Slots = map[Slot]Installed{}
	}
	st.Slots[st.Slot] = st.Release
	s.j.Done = nil
	return s.move(ctx, Committed, "")
}

// Rollback takes a release that is armed or on trial back out of service and
// remembers it as failed.
func (in *Installer) Rollback(ctx context.Context, reason error) error {
	s, err := in.begin(ctx)
	if err != nil {
		return err
	}
	defer s.release()
	switch s.j.State.Phase {
	case Verified, Armed, Trial:
		if reason == nil {
			reason = errors.New("rolled back by the application")
		}
		return s.fallBack(ctx, reason.Error())
	}
	return refuse(ErrNotTrial, "installer", "phase %s", s.j.State.Phase)
}

// CleanShutdown gives a release on trial the try of this boot back, at most
// three times: call it when the node is switched off on purpose.
func (in *Installer) CleanShutdown(ctx context.Context) error {
	s, err := in.begin(ctx)
	if err != nil {
		return err
	}
	defer s.release()
	if s.j.State.Phase != Trial || s.running.Slot != s.j.State.Slot || s.j.Rearmed >= 3 {
		return nil
	}
	s.j.Rearmed++
	if err := s.j.save(in.cfg.Dir); err != nil {
		return err
	}
	if err := in.cfg.Boot.Arm(ctx, s.running.Slot, min(s.running.Tries+1, in.cfg.Tries)); err != nil {
		return fmt.Errorf("update: boot control: %w", err)
	}
	return nil
}

// ClearFailed forgets which releases failed on this node: an operator's
// decision.
func (in *Installer) ClearFailed(ctx context.Context) error {
	s, err := in.begin(ctx)
	if err != nil {
		return err
	}
	defer s.release()
	s.j.State.Failed = nil
	return s.j.save(in.cfg.Dir)
}

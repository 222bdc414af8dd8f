package wire

import (
	"context"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Notify tells the service manager (sd_notify(3)); without one it does nothing.
func Notify(state string) { _, _ = daemon.SdNotify(false, state) }

// Watchdog tells the service manager that the daemon is alive for as long as
// alive says so, until ctx ends: a daemon that hangs is restarted. alive is
// asked three times in each period and given a third of it. Without a watchdog
// it returns at once.
func Watchdog(ctx context.Context, alive func(context.Context) bool) {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		return
	}
	tick := time.NewTicker(every / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			probe, cancel := context.WithTimeout(ctx, every/3)
			ok := alive(probe)
			cancel()
			if ok {
				Notify("WATCHDOG=1")
			}
		}
	}
}

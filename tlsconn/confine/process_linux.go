package confine

import (
	"errors"
	"fmt"

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"
)

// landlockVersionFlag asks landlock_create_ruleset for the ABI version.
const landlockVersionFlag = 1

// firstNetworkABI is the first Landlock ABI with network rules.
const firstNetworkABI = 4

func process(ports []uint16) error {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, landlockVersionFlag)
	if errno != 0 || abi < firstNetworkABI {
		return errors.Join(ErrUnsupported, fmt.Errorf("landlock ABI %d: %w", int(abi), errno))
	}
	cfg, err := landlock.NewConfig(landlock.AccessNetSet(1 << 1)) // LANDLOCK_ACCESS_NET_CONNECT_TCP
	if err != nil {
		return fmt.Errorf("confine: %w", err)
	}
	rules := make([]landlock.Rule, len(ports))
	for i, p := range ports {
		rules[i] = landlock.ConnectTCP(p)
	}
	if err := cfg.RestrictNet(rules...); err != nil {
		return fmt.Errorf("confine: %w", err)
	}
	return nil
}

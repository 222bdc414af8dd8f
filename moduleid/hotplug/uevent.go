package hotplug

import (
	"errors"
	"strings"
)

// Uevents is a Source that listens to the kernel's device events
// (NETLINK_KOBJECT_UEVENT). It needs Linux and no privileges.
type Uevents struct {
	// Match maps an event to a connector. Device is what the kernel says:
	// ACTION, DEVPATH, SUBSYSTEM and more. An event for which it returns false
	// is ignored.
	Match func(device map[string]string) (connector string, ok bool)
}

const maxUevent = 16 << 10

// parseUevent reads "action@path" and KEY=VALUE strings, each ended by a zero.
func parseUevent(p []byte) (map[string]string, error) {
	if len(p) > maxUevent {
		return nil, errors.New("a device event is too large")
	}
	parts := strings.Split(strings.TrimSuffix(string(p), "\x00"), "\x00")
	action, path, ok := strings.Cut(parts[0], "@")
	if !ok {
		return nil, errors.New("a device event has no header") // such as udev's own, which start with libudev
	}
	device := map[string]string{}
	for _, kv := range parts[1:] {
		k, v, ok := strings.Cut(kv, "=")
		if !ok {
			return nil, errors.New("a device event has a string that is no assignment")
		}
		device[k] = v
	}
	if device["ACTION"] != action || device["DEVPATH"] != path {
		return nil, errors.New("a device event contradicts its header")
	}
	return device, nil
}

// translate turns a device event into one for a connector.
func (u Uevents) translate(device map[string]string) (Event, bool) {
	connector, ok := u.Match(device)
	if !ok || connector == "" {
		return Event{}, false
	}
	switch device["ACTION"] {
	case "remove", "offline", "unbind":
		return Event{connector, false}, true
	case "add", "online", "bind", "change", "move":
		return Event{connector, true}, true
	}
	return Event{}, false
}

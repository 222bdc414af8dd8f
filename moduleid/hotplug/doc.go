// Package hotplug keeps a moduleid.Inventory in step with what is plugged in.
//
// Start with [Run] and one or more sources: [Poll] asks for presence at an
// interval, [Uevents] listens to the kernel's device events over netlink, and
// [GPIO] watches presence lines through the GPIO character device. A source
// only says that something may have changed; what is there is proven, never
// assumed. An event that was lost counts as a change of everything.
package hotplug

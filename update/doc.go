// Package update brings signed software to a node and takes a bad release back
// out: a client of The Update Framework (TUF specification 1.0.31), releases of
// several parts, floors below which nothing is accepted, and an installer for
// two slots.
//
// Start with NewClient and NewInstaller. The publisher's side is package
// repository below this one; boot loaders and slots are in package boot; a kit
// that cuts the power of your own backends is in package updatetest.
//
// # How an update travels
//
// Client.Refresh runs the whole TUF workflow from the root that the
// application embeds, with the history of roots kept beside it. Client.Select
// finds the release that is meant for this node: right hardware, channel, wave
// and, with a director configured, assigned to this node by the second party.
// Installer.Install writes its parts into the slot that is not running, reads
// them back, compares them with the signed hashes, asks Preflight whether the
// disk will open in the next boot, and only then arms the slot for a bounded
// number of tries. After the reboot Installer.Resume says Trial;
// Installer.Confirm runs the health checks, makes the slot permanent, and only
// then raises the floors. Call Resume first at every boot.
//
// # What it defends against
//
// The attacks of section 1.5.2 of the TUF specification (arbitrary
// installation, endless data, extraneous dependencies, fast-forward, freeze,
// slow retrieval, mix-and-match, rollback, wrong software, vulnerable key
// revocation), a repository that replays revoked roots, malformed metadata
// before any signature was checked, an online key or a director that is
// compromised alone, a state file that was put back or deleted, and a power
// cut at any write. Each has a test with its name.
//
// # What it does not defend against
//
// A threshold of stolen root keys. Software with the node's full privileges
// that runs already. Without TPMFloors, a thief who restores an old disk
// image: FileFloors says so in its Kind. What a release does once it was
// confirmed is judged by whoever signs releases.
//
// # Compatibility
//
// Until v1.0.0 an exported name may change with a minor version. Stored files
// and release objects carry a version; readers accept it and the one before.
package update

package main

import (
	"context"
	"crypto"
	"errors"
	"net"
	"os"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"github.com/trusttree/trusttree/fscrypt"
)

// keepName is the name of the kept file in the service manager's store.
const keepName = "keep"

// given returns the file descriptors that the service manager passed, by name:
// the sensors' socket, and what an earlier process of this boot left.
func (n *node) given(name string) *os.File {
	if n.passed == nil {
		n.passed = map[string]*os.File{}
		for _, f := range activation.Files(true) {
			n.passed[f.Name()] = f
		}
	}
	return n.passed[name]
}

// openKeep takes what an earlier process of this boot left with the service
// manager, or leaves something new there.
func (n *node) openKeep() error {
	if !n.cfg.Keep {
		return nil
	}
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return errors.New("keep_across_restarts needs a service manager that stores file descriptors (FileDescriptorStoreMax=)")
	}
	f := n.given(keepName)
	k, err := fscrypt.NewKeep(f)
	if err != nil {
		return err
	}
	if f == nil {
		if err := storeFD(k.File()); err != nil {
			return errors.Join(err, k.Close())
		}
	}
	n.keep = k
	return nil
}

// storeFD gives a file to the service manager (sd_pid_notify_with_fds(3)).
func storeFD(f *os.File) error {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: os.Getenv("NOTIFY_SOCKET"), Net: "unixgram"})
	if err != nil {
		return err
	}
	_, _, err = conn.WriteMsgUnix([]byte("FDSTORE=1\nFDNAME="+keepName), unix.UnixRights(int(f.Fd())), nil)
	return errors.Join(err, conn.Close())
}

// alive says whether the TPM still answers.
func (n *node) alive(ctx context.Context) bool {
	_, err := modulePCRs{n.tpm}.ReadPCR(ctx, 0, crypto.SHA256)
	return err == nil
}

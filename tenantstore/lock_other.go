//go:build !unix

package tenantstore

import "os"

func lockDir(name string) (*os.File, error) { return os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600) }

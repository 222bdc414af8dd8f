package repository_test

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// dirFetcher lets go-tuf's updater read a directory.
type dirFetcher string

func (d dirFetcher) DownloadFile(urlPath string, _ int64, _ time.Duration) ([]byte, error) {
	name, _ := strings.CutPrefix(urlPath, "https://example.invalid/")
	data, err := os.ReadFile(filepath.Join(string(d), filepath.FromSlash(name)))
	if os.IsNotExist(err) {
		return nil, &metadata.ErrDownloadHTTP{StatusCode: 404, URL: urlPath}
	}
	return data, err
}

package tufmeta

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Quote makes one safe file name, or one segment of a URL, of any string:
// everything but letters, digits, '.', '_', '-' and '~' is percent-encoded.
// "." and ".." are encoded too.
func Quote(s string) string {
	if s == "." || s == ".." {
		return strings.ReplaceAll(s, ".", "%2E")
	}
	return escape(s)
}

func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("._-~", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// RoleFile is the file name of a role's metadata without a version: the
// percent-encoded name and ".json", which keeps "." and ".." harmless.
func RoleFile(role string) string { return escape(role) + ".json" }

// CacheFile is RoleFile, cut to what file systems take.
func CacheFile(role string) string {
	name := RoleFile(role)
	if len(name) <= 200 {
		return name
	}
	sum := sha256.Sum256([]byte(role))
	return name[:100] + "~" + hex.EncodeToString(sum[:]) + ".json"
}

// MetadataName is the file name of a metadata version in a repository with
// consistent snapshots. Timestamp has no version in its name.
func MetadataName(role string, version int64) string {
	if role == metadata.TIMESTAMP {
		return "timestamp.json"
	}
	return strconv.FormatInt(version, 10) + "." + RoleFile(role)
}

// TargetName is the file name of a target in a repository with consistent
// snapshots: the hash stands before the last element.
func TargetName(name, hash string) string {
	dir, base := path.Split(name)
	return dir + hash + "." + base
}

// CheckTargetName refuses names that are not clean, relative, slash-separated
// paths.
func CheckTargetName(name string) error {
	if name == "" || len(name) > 1024 || strings.HasPrefix(name, "/") || strings.ContainsAny(name, "\\\x00") || path.Clean(name) != name ||
		name == "." || name == ".." || strings.HasPrefix(name, "../") {
		return malformed("target name %.60q", name)
	}
	return nil
}

// Delegated reports whether a delegation covers a target: by the glob patterns
// of its paths, segment by segment, or by prefixes of the hex SHA-256 of the
// target's name (TUF specification, section 4.5).
func Delegated(r *metadata.DelegatedRole, target string) bool {
	for _, p := range r.Paths {
		if match(p, target) {
			return true
		}
	}
	if len(r.PathHashPrefixes) > 0 {
		sum := sha256.Sum256([]byte(target))
		h := hex.EncodeToString(sum[:])
		for _, p := range r.PathHashPrefixes {
			if p != "" && strings.HasPrefix(h, p) {
				return true
			}
		}
	}
	return false
}

func match(pattern, name string) bool {
	ps, ns := strings.Split(pattern, "/"), strings.Split(name, "/")
	if len(ps) != len(ns) {
		return false
	}
	for i := range ps {
		if ok, err := path.Match(ps[i], ns[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

// RolesFor lists the delegations that cover a target, in the delegator's order.
func RolesFor(d *metadata.Delegations, target string) []metadata.RoleResult {
	if d == nil {
		return nil
	}
	if d.Roles == nil && d.SuccinctRoles != nil {
		return d.SuccinctRoles.GetRolesForTarget(target)
	}
	var out []metadata.RoleResult
	for i := range d.Roles {
		if Delegated(&d.Roles[i], target) {
			out = append(out, metadata.RoleResult{Name: d.Roles[i].Name, Terminating: d.Roles[i].Terminating})
		}
	}
	return out
}

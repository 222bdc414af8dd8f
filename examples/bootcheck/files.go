package main

import (
	"bufio"
	"bytes"
	"crypto"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/eventlog"
)

// maxFile bounds every input, in bytes.
const maxFile = 64 << 20

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err == nil && fi.Mode().IsRegular() && fi.Size() > maxFile {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, maxFile)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, maxFile)
	}
	return b, nil
}

// load reads a boot's files and verifies the quote, if there is one. The
// evidence has the quoted PCRs only; without a quote that verifies it is marked
// so.
func (f bootFiles) load(bank crypto.Hash) (ev secureboot.Evidence, q quoteResult, err error) {
	ev = secureboot.Evidence{Bank: bank, Unquoted: true}
	if ev.EventLog, err = readFile(f.log); err != nil {
		return ev, q, err
	}
	b, err := readFile(f.pcrs)
	if err != nil {
		return ev, q, err
	}
	if ev.PCRs, err = parsePCRs(b, bank); err != nil {
		return ev, q, fmt.Errorf("%s: %w", f.pcrs, err)
	}
	for _, opt := range []struct {
		name string
		to   *[]byte
	}{{f.ima, &ev.IMALog}, {f.userspace, &ev.UserspaceLog}} {
		if opt.name != "" {
			if *opt.to, err = readFile(opt.name); err != nil {
				return ev, q, err
			}
		}
	}
	given := 0
	var parts [4][]byte
	for i, name := range []string{f.ak, f.quote, f.sig, f.nonce} {
		if name != "" {
			given++
			if parts[i], err = readFile(name); err != nil {
				return ev, q, err
			}
		}
	}
	switch given {
	case 0:
		return ev, quoteResult{state: quoteAbsent}, nil
	case 4:
	default:
		return ev, q, errors.New("-ak, -quote, -sig and -nonce go together")
	}
	quoted, err := verifyQuote(parts[0], parts[1], parts[2], parts[3], bank, ev.PCRs)
	if err != nil {
		return ev, quoteResult{quoteBroken, err}, nil
	}
	ev.PCRs, ev.Unquoted = quoted, false
	return ev, quoteResult{state: quoteVerified}, nil
}

// parsePCRs reads lines of bank, index and hex value.
func parsePCRs(b []byte, bank crypto.Hash) (map[int][]byte, error) {
	pcrs := make(map[int][]byte)
	s := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; s.Scan(); n++ {
		f := strings.Fields(s.Text())
		if len(f) == 0 {
			continue
		}
		if len(f) != 3 {
			return nil, fmt.Errorf("line %d: want bank, index and value", n)
		}
		h := eventlog.HashByName(f[0])
		i, err := strconv.Atoi(f[1])
		v, err2 := hex.DecodeString(f[2])
		if h == 0 || err != nil || err2 != nil || i < 0 || i > 23 || len(v) != h.Size() {
			return nil, fmt.Errorf("line %d: not a PCR of a known bank", n)
		}
		if h != bank {
			continue
		}
		if _, ok := pcrs[i]; ok {
			return nil, fmt.Errorf("line %d: PCR %d is there twice", n, i)
		}
		pcrs[i] = v
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	if len(pcrs) == 0 {
		return nil, fmt.Errorf("no PCRs of bank %s", eventlog.HashName(bank))
	}
	return pcrs, nil
}

func pemCertificate(b []byte, name string) ([]byte, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s: no PEM certificate", name)
	}
	return block.Bytes, nil
}

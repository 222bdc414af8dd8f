// Bootcheck judges what a machine booted, from files: its event log, its PCRs,
// its IMA log, and a TPM quote over the PCRs.
//
//	bootcheck -log FILE -pcrs FILE [-bank sha256] [-ima FILE] [-userspace FILE]
//	          [-ak FILE -quote FILE -sig FILE -nonce FILE]
//	          [-policy FILE [-policy-key FILE]] [-json]
//	bootcheck learn -out FILE [-bank sha256] [-days 365] BOOT...
//	bootcheck predict -uki FILE [-pk FILE -kek FILE -db FILE] [-policy FILE -out FILE]
//
// Without a policy, or without a quote that verifies, the verdict is warning at
// best. Exit status: 0 affirming, 1 warning, 2 contraindicated or evidence
// broken (a log or quote that can be read but is empty, cut off or changed), 3
// unusable input (files that can't be read, PCR values or policies that are
// none, wrong flags). learn and predict exit with 0, or 3.
package main

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/eventlog"
)

// Exit status, fixed by the command's contract.
const (
	exitAffirming       = 0
	exitWarning         = 1
	exitContraindicated = 2
	exitUnusable        = 3
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	var err error
	code := 0
	switch {
	case len(args) > 0 && args[0] == "learn":
		err = learn(args[1:], stdout, stderr)
	case len(args) > 0 && args[0] == "predict":
		err = predictCmd(args[1:], stdout, stderr)
	default:
		code, err = check(args, stdout, stderr)
	}
	if errors.Is(err, flag.ErrHelp) {
		return exitAffirming
	}
	if err != nil {
		fmt.Fprintf(stderr, "bootcheck: %v\n", err)
		return exitUnusable
	}
	return code
}

// bootFiles names the files of one boot.
type bootFiles struct {
	log, pcrs, ima, userspace string
	ak, quote, sig, nonce     string
}

func check(args []string, stdout, stderr io.Writer) (int, error) {
	fs := flag.NewFlagSet("bootcheck", flag.ContinueOnError)
	fs.SetOutput(stderr)
	var f bootFiles
	fs.StringVar(&f.log, "log", "", "event log (binary_bios_measurements)")
	fs.StringVar(&f.pcrs, "pcrs", "", "PCR values: lines of bank, index and hex")
	fs.StringVar(&f.ima, "ima", "", "IMA log (binary_runtime_measurements)")
	fs.StringVar(&f.userspace, "userspace", "", "CEL log of what user space extended")
	fs.StringVar(&f.ak, "ak", "", "attestation key (TPM2B_PUBLIC)")
	fs.StringVar(&f.quote, "quote", "", "quote (TPMS_ATTEST)")
	fs.StringVar(&f.sig, "sig", "", "quote's signature (TPMT_SIGNATURE)")
	fs.StringVar(&f.nonce, "nonce", "", "quote's nonce (raw bytes)")
	bankName := fs.String("bank", "sha256", "PCR bank: sha256, sha384, sha512 or sha1")
	policyFile := fs.String("policy", "", "policy that learn made, plain or signed")
	policyKey := fs.String("policy-key", "", "PEM public key that must have signed the policy")
	asJSON := fs.Bool("json", false, "print the result as JSON")
	if err := fs.Parse(args); err != nil {
		return 0, err
	}
	if fs.NArg() > 0 || f.log == "" || f.pcrs == "" {
		return 0, errors.New("want -log FILE and -pcrs FILE (try -help, or the commands learn and predict)")
	}
	bank := eventlog.HashByName(*bankName)
	if bank == 0 {
		return 0, fmt.Errorf("-bank %q: want sha256, sha384, sha512 or sha1", *bankName)
	}
	ev, quote, err := f.load(bank)
	if err != nil {
		return 0, err
	}
	var policy *secureboot.Policy
	if *policyFile != "" {
		if policy, err = readPolicy(*policyFile, *policyKey); err != nil {
			return 0, err
		}
	}
	var r *secureboot.Result
	if policy != nil {
		r = policy.Appraise(ev, time.Now())
	} else {
		r = secureboot.Inspect(ev)
	}
	if quote.state == quoteBroken {
		refuse(r, quote.err)
	}
	if *asJSON {
		err = printJSON(stdout, r, quote, ev)
	} else {
		err = printTable(stdout, r, quote, ev)
	}
	if err != nil {
		return 0, fmt.Errorf("write the result: %w", err)
	}
	switch r.Status {
	case secureboot.Affirming:
		return exitAffirming, nil
	case secureboot.Warning:
		return exitWarning, nil
	}
	return exitContraindicated, nil
}

// refuse takes back every claim: the quote that should stand behind the values
// does not. Findings stay, for whoever looks for the cause.
func refuse(r *secureboot.Result, why error) {
	r.Status, r.SecureBoot, r.Enforcing, r.IMA = secureboot.Contraindicated, nil, false, nil
	r.Findings = append([]secureboot.Finding{{Code: "quote.broken", Severity: secureboot.Contraindicated, PCR: -1, Event: -1, Detail: why.Error()}}, r.Findings...)
	for pcr, s := range r.PCRs {
		if s.Status == secureboot.Affirming {
			s.Status, s.Detail = secureboot.None, "no quote confirms it"
			r.PCRs[pcr] = s
		}
	}
}

// readPolicy reads a policy: a signed one only with the key that must have
// signed it, and with a key only a signed one.
func readPolicy(name, keyFile string) (*secureboot.Policy, error) {
	b, err := readFile(name)
	if err != nil {
		return nil, err
	}
	if keyFile == "" {
		p, err := secureboot.ParsePolicy(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w (is it signed? then give -policy-key)", name, err)
		}
		return p, nil
	}
	k, err := readFile(keyFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(k)
	if block == nil {
		return nil, fmt.Errorf("%s: no PEM block", keyFile)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", keyFile, err)
	}
	p, err := secureboot.VerifyPolicy(b, []crypto.PublicKey{key}, 0, time.Now())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return p, nil
}

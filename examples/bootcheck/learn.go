package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/eventlog"
	"github.com/trusttree/trusttree/secureboot/predict"
)

// learn makes a policy of directories, each the recording of a good boot.
func learn(args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("bootcheck learn", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprintln(stderr, "usage: bootcheck learn [flags] BOOT...\nBOOT is a directory with binary_bios_measurements, pcrs.txt and, as far as there are such,\nima_binary_runtime_measurements, userspace.cel, ak_pub.tpm2b, quote_BANK.tpms_attest, quote_BANK.tpmt_signature, nonce.bin.")
		fs.PrintDefaults()
	}
	var opts secureboot.LearnOptions
	bankName := fs.String("bank", "sha256", "PCR bank: sha256, sha384 or sha512")
	out := fs.String("out", "", "file to write the policy to (default: standard output)")
	days := fs.Int("days", 365, "days until the policy ends")
	fs.StringVar(&opts.Name, "name", "node", "name of the policy")
	fs.Uint64Var(&opts.Serial, "serial", 1, "serial number of the policy")
	fs.BoolVar(&opts.PinPCR7, "pin-keys", false, "take PCR 7 as it was: a new dbx is refused too")
	fs.IntVar(&opts.MaxFailedBoots, "max-failed-attempts", 0, "boot options that may fail before the good one")
	fs.BoolVar(&opts.WithoutIMAFiles, "any-file", false, "do not judge which files IMA measured")
	fs.BoolVar(&opts.InsecureNoSB, "insecure-no-secure-boot", false, "learn from boots without Secure Boot (boards that have none)")
	fs.BoolVar(&opts.SHA1PaddedBank, "sha1-padded", false, "allow a bank that the kernel's IMA fills with padded SHA-1 digests")
	if err := fs.Parse(args); err != nil {
		return err
	}
	bank := eventlog.HashByName(*bankName)
	if bank == 0 || fs.NArg() == 0 || *days < 1 {
		return errors.New("learn: want a known -bank, -days of 1 or more, and one or more directories of good boots")
	}
	opts.NotAfter = time.Now().AddDate(0, 0, *days).UTC().Truncate(time.Second)
	var boots []secureboot.Evidence
	for _, dir := range fs.Args() {
		ev, q, err := directory(dir, *bankName).load(bank)
		if err != nil {
			return fmt.Errorf("learn: %w", err)
		}
		switch q.state {
		case quoteBroken:
			return fmt.Errorf("learn: %s: %w", dir, q.err)
		case quoteAbsent:
			fmt.Fprintf(stderr, "bootcheck: %s has no quote: its PCR values are taken as they are\n", dir)
		}
		boots = append(boots, ev)
	}
	p, err := secureboot.Learn(opts, boots...)
	if err != nil {
		return err
	}
	return writeJSON(p, *out, stdout)
}

// directory is a boot recorded in the corpus' files.
func directory(dir, bank string) bootFiles {
	file := func(name string) string {
		p := filepath.Join(dir, name)
		if _, err := os.Stat(p); err != nil {
			return ""
		}
		return p
	}
	f := bootFiles{log: filepath.Join(dir, "binary_bios_measurements"), pcrs: filepath.Join(dir, "pcrs.txt"),
		ima: file("ima_binary_runtime_measurements"), userspace: file("userspace.cel")}
	if q := file("quote_" + bank + ".tpms_attest"); q != "" {
		f.quote, f.sig, f.ak, f.nonce = q, file("quote_"+bank+".tpmt_signature"), file("ak_pub.tpm2b"), file("nonce.bin")
	}
	return f
}

func writeJSON(v any, out string, stdout io.Writer) error {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	b = append(b, '\n')
	if out == "" {
		_, err = stdout.Write(b)
		return err
	}
	return replaceFile(out, b)
}

// replaceFile writes a file whole or not at all.
func replaceFile(name string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// predictCmd prints what an image and keys will measure; with -policy, it adds
// the image to a policy.
func predictCmd(args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("bootcheck predict", flag.ContinueOnError)
	fs.SetOutput(stderr)
	uki := fs.String("uki", "", "unified kernel image, signed as it will be booted")
	bankName := fs.String("bank", "sha256", "PCR bank: sha256, sha384 or sha512")
	owner := fs.String("owner", "77fa9abd-0359-4d32-bd60-28f4e78f784b", "owner GUID of the enrolled keys")
	pk, kek, db := fs.String("pk", "", "platform key's certificate (DER or PEM)"), fs.String("kek", "", "key exchange key's certificate"), fs.String("db", "", "certificate in db that signed the image")
	dbx := fs.String("dbx", "", "content of dbx (EFI signature lists)")
	profile := fs.Int("profile", 0, "profile of a multi-profile image")
	loaded := fs.Bool("kernel-loaded", false, "the stub starts the kernel through the firmware")
	policyFile := fs.String("policy", "", "policy to which the image is added")
	out := fs.String("out", "", "file to write to (default: standard output)")
	if err := fs.Parse(args); err != nil {
		return err
	}
	bank := eventlog.HashByName(*bankName)
	if bank == 0 || *uki == "" || fs.NArg() > 0 {
		return errors.New("predict: want -uki FILE and a known -bank")
	}
	f, err := os.Open(*uki)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	u, err := predict.MeasureProfile(f, fi.Size(), bank, *profile)
	if err != nil {
		return fmt.Errorf("%s: %w", *uki, err)
	}
	system := u.Variant(filepath.Base(*uki), predict.Boot{KernelLoaded: *loaded})
	if *policyFile != "" {
		return addImage(*policyFile, system, *out, stdout)
	}
	comps := []secureboot.Component{{Name: "system", Variants: []secureboot.Variant{system}}}
	if *pk != "" || *kek != "" || *db != "" {
		keys, err := keyVariant(*pk, *kek, *db, *dbx, *owner, *bankName)
		if err != nil {
			return err
		}
		comps = append(comps, secureboot.Component{Name: "keys", Variants: []secureboot.Variant{keys}})
	}
	values, err := predict.Values(bank, comps)
	if err != nil {
		return err
	}
	pcrs := make(map[string]string)
	for pcr, v := range values[0] {
		pcrs[fmt.Sprint(pcr)] = fmt.Sprintf("%x", v)
	}
	return writeJSON(map[string]any{"components": comps, "pcrs": pcrs}, *out, stdout)
}

func keyVariant(pk, kek, db, dbx, owner, bank string) (v secureboot.Variant, err error) {
	var ders [3][]byte
	var lists [3][]byte
	for i, name := range []string{pk, kek, db} {
		if ders[i], err = certificate(name); err != nil {
			return v, err
		}
		if lists[i], err = predict.SignatureList(owner, ders[i]); err != nil {
			return v, err
		}
	}
	k := predict.Keys{PK: lists[0], KEK: lists[1], DB: lists[2]}
	if dbx != "" {
		if k.DBX, err = readFile(dbx); err != nil {
			return v, err
		}
	}
	return k.Variant("keys", eventlog.HashByName(bank), owner, ders[2])
}

// addImage adds a variant to the policy's component "system" and counts its
// serial up.
func addImage(policyFile string, system secureboot.Variant, out string, stdout io.Writer) error {
	p, err := readPolicy(policyFile, "")
	if err != nil {
		return err
	}
	for i := range p.Components {
		if c := &p.Components[i]; c.Name == "system" {
			c.Variants = append(c.Variants, system)
			p.Serial++
			return writeJSON(p, out, stdout)
		}
	}
	return fmt.Errorf("%s: has no component \"system\" to which the image could be added", policyFile)
}

// certificate reads a certificate in DER or PEM.
func certificate(name string) ([]byte, error) {
	if name == "" {
		return nil, errors.New("predict: -pk, -kek and -db go together")
	}
	b, err := readFile(name)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("-----BEGIN")) {
		return pemCertificate(b, name)
	}
	return b, nil
}

package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"os"
	"strings"

	"github.com/trusttree/trusttree/update/repository"
)

func payload(ctx context.Context, a *app, args []string) error {
	a.onRepo()
	roleName := a.fl.String("role", "", "role in the draft")
	out := a.fl.String("out", "", "file for the payload")
	if err := a.parse(args, 0); err != nil {
		return err
	}
	if *out == "" {
		return usage("-out is missing")
	}
	r, err := a.open(ctx)
	if err != nil {
		return err
	}
	data, err := r.Payload(ctx, *roleName)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	fmt.Fprintf(a.out, "payload of %s, SHA-256 %x: compare it where it is signed\n", *roleName, sum)
	return os.WriteFile(*out, data, 0o644)
}

func addSignature(ctx context.Context, a *app, args []string) error {
	a.onRepo()
	roleName := a.fl.String("role", "", "role in the draft")
	pub := a.fl.String("pub", "", "public key file of who signed")
	in := a.fl.String("in", "", "signature file")
	if err := a.parse(args, 0); err != nil {
		return err
	}
	if *pub == "" || *in == "" {
		return usage("-pub and -in are needed")
	}
	r, err := a.open(ctx)
	if err != nil {
		return err
	}
	by, err := readPublic(*pub)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(*in)
	if err != nil {
		return err
	}
	sig, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("%s holds no signature in base64: %w", *in, err)
	}
	if err := r.AddSignature(ctx, *roleName, by, sig); err != nil {
		return err
	}
	return showDraft(ctx, a, r)
}

func draft(ctx context.Context, a *app, args []string) error {
	a.onRepo()
	if err := a.parse(args, 0); err != nil {
		return err
	}
	r, err := a.open(ctx)
	if err != nil {
		return err
	}
	return showDraft(ctx, a, r)
}

func showDraft(ctx context.Context, a *app, r *repository.Repository) error {
	waiting, err := r.Draft(ctx)
	if err != nil {
		return err
	}
	for _, w := range waiting {
		fmt.Fprintf(a.out, "%s: %d signed, %d needed\n", w.Role, len(w.Signed), w.Need)
		for _, id := range w.Missing {
			fmt.Fprintf(a.out, "  waits for %.16s…\n", id)
		}
	}
	return nil
}

func publishDraft(ctx context.Context, a *app, args []string) error {
	return a.sign(ctx, args, (*repository.Repository).PublishDraft)
}

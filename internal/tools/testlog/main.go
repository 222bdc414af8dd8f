// Testlog keeps what "go test -json" prints and shows what "go test" would:
//
//	go test -json ./... | testlog FILE
//
// It appends the events to FILE, and prints what packages say of themselves and
// the output of tests that fail. Lines that are no events (of the go command)
// are printed and not kept. It exits 1 when anything failed.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
)

type event struct{ Action, Package, Test, Output string }

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: testlog FILE")
		os.Exit(2)
	}
	failed, err := run(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "testlog:", err)
		os.Exit(1)
	}
	if failed {
		os.Exit(1)
	}
}

func run(name string) (failed bool, err error) {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return false, err
	}
	said := map[[2]string]string{} // by tests that have not ended
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		var e event
		if json.Unmarshal(in.Bytes(), &e) != nil || e.Action == "" {
			fmt.Println(in.Text())
			continue
		}
		if _, err := fmt.Fprintf(f, "%s\n", in.Bytes()); err != nil {
			return failed, err
		}
		key := [2]string{e.Package, e.Test}
		switch e.Action {
		case "output", "build-output":
			if e.Test == "" {
				fmt.Print(e.Output)
			} else {
				said[key] += e.Output
			}
		case "fail", "build-fail":
			failed = true
			fmt.Print(said[key])
			delete(said, key)
		case "pass", "skip":
			delete(said, key)
		}
	}
	if err := in.Err(); err != nil {
		return failed, err
	}
	return failed, f.Close()
}

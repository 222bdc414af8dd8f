package secureboot_test

import (
	"bufio"
	"crypto"
	"encoding/hex"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/trusttree/trusttree/secureboot"
)

// Learn a policy from a boot that is known to be good, and judge others by it.
func Example() {
	good := recordedBoot("uki-sb-on")
	policy, err := secureboot.Learn(secureboot.LearnOptions{Name: "camera node", Serial: 1, NotAfter: time.Now().AddDate(1, 0, 0)}, good)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("again:", policy.Appraise(good, time.Now()).Status)

	off := policy.Appraise(recordedBoot("uki-sb-off"), time.Now())
	fmt.Println("with Secure Boot off:", off.Status)
	for _, f := range off.Findings {
		if f.Code == secureboot.CodeSBDisabled {
			fmt.Println(f)
		}
	}
	// Output:
	// again: affirming
	// with Secure Boot off: contraindicated
	// sb.disabled, PCR 7: Secure Boot is off
}

// recordedBoot stands for evidence whose quote has been verified.
func recordedBoot(name string) secureboot.Evidence {
	dir := "testdata/vm/" + name + "/"
	eventLog, err := os.ReadFile(dir + "binary_bios_measurements")
	if err != nil {
		log.Fatal(err)
	}
	imaLog, err := os.ReadFile(dir + "ima_binary_runtime_measurements")
	if err != nil {
		log.Fatal(err)
	}
	f, err := os.Open(dir + "pcrs.txt")
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	pcrs := make(map[int][]byte)
	for s := bufio.NewScanner(f); s.Scan(); {
		var bank, value string
		var pcr int
		if _, err := fmt.Sscan(s.Text(), &bank, &pcr, &value); err != nil {
			log.Fatal(err)
		}
		if bank == "sha256" {
			if pcrs[pcr], err = hex.DecodeString(value); err != nil {
				log.Fatal(err)
			}
		}
	}
	return secureboot.Evidence{Bank: crypto.SHA256, PCRs: pcrs, EventLog: eventLog, IMALog: imaLog}
}

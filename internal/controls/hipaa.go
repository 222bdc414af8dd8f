package controls

func hipaa() Framework {
	return Framework{
		ID: "hipaa-164.312", Prefix: "hipaa-", Title: "HIPAA Security Rule, 45 CFR 164.312, Technical safeguards", Edition: "as codified in 45 CFR part 164, subpart C",
		Source: "https://www.ecfr.gov/current/title-45/section-164.312",
		Note: "(R) is a required and (A) an addressable implementation specification. Administrative and physical safeguards (164.308, 164.310), agreements and documentation " +
			"(164.314, 164.316) are the covered entity's or business associate's and not listed.",
		Controls: []Control{
			{"164.312(a)(1)", "Access control", by("tenant-isolation", "tenant-roles", "flow-policy"),
				"Data of a tenant is reached only by identities that were granted access.", "Who has which right; access of people.", "Applications above the store."},
			{"164.312(a)(2)(i)", "Unique user identification (R)", by("device-identity", "tenant-isolation"),
				"Each node and each client of the store has a unique name, which the audit log carries.", "Names of people, and carrying them to the store as subjects.", "Users of applications."},
			{"164.312(a)(2)(ii)", "Emergency access procedure (R)", by("volume-recovery", "tenant-backup"),
				"Recovery keys open volumes; the age tool opens backups without the service.", "The procedure; custody of keys; exercises.", "The procedure."},
			{"164.312(a)(2)(iii)", "Automatic logoff (A)", by("connection-limits", "remote-release"),
				"Idle flows are closed, volumes shut when a lease ends.", "Sessions of people.", "Workstations and applications."},
			{"164.312(a)(2)(iv)", "Encryption and decryption (A)", by("volume-encryption", "tenant-encryption", "tenant-keys"),
				"Volumes and records are encrypted at rest with managed keys.", "Deciding where it applies; key custody.", "Data outside of volumes and store."},
			{"164.312(b)", "Audit controls", by("audit-trail", "flow-audit", "audit-failure"),
				"Accesses are recorded in a log that can't be changed unseen.", "Examining the records; keeping them as long as 164.316 says.", "Activity inside applications."},
			{"164.312(c)(1)", "Integrity", by("record-integrity", "volume-integrity", "tenant-backup"),
				"Improper alteration is detected; destruction can be forbidden by holds.", "Policies.", "Alteration by who is authorised to write."},
			{"164.312(c)(2)", "Mechanism to authenticate electronic protected health information (A)", by("record-integrity", "audit-trail"),
				"Records are authenticated with their place; the log says who wrote them.", "Evaluating the mechanism.", ""},
			{"164.312(d)", "Person or entity authentication", by("device-identity", "mutual-tls", "attestation"),
				"Entities that are machines prove themselves by keys in hardware.", "Persons.", "Authentication of persons."},
			{"164.312(e)(1)", "Transmission security", by("mutual-tls", "flow-policy"),
				"Transmission between node, gateway and tenant is guarded.", "Other transmission.", ""},
			{"164.312(e)(2)(i)", "Integrity controls (A)", by("mutual-tls", "transfer-integrity"),
				"Changed data breaks the session; a cut transfer is never a clean end.", "", "Beyond the tunnel's ends."},
			{"164.312(e)(2)(ii)", "Encryption (A)", by("mutual-tls", "approved-cryptography"),
				"TLS 1.3 with hybrid key exchange; FIPS mode works.", "Choosing algorithms by current guidance.", ""},
		},
	}
}

// ear is no list of security controls: it states where encryption is in the
// module, for who has to classify a product.
func ear() Framework {
	return Framework{
		ID: "ear", Prefix: "ear-", Title: "Export Administration Regulations, encryption clauses (15 CFR 730-774)", Edition: "as codified; check the current text",
		Source: "https://www.ecfr.gov/current/title-15/subtitle-B/chapter-VII/subchapter-C",
		Note: "Facts for who classifies a product, and no legal advice. The tests show that the named encryption is in the module and works; " +
			"they show nothing about a classification, an exception or a notification. " +
			"What is said of 742.15(b) since 2021 was compared with the Linux Foundation's published guidance, and that of object code with 76 FR 1059; no paragraph was checked against its codified text.",
		Controls: []Control{
			{"5D002", "\"Information Security\" software (Category 5, Part 2)", by("mutual-tls", "volume-encryption", "tenant-encryption", "tenant-backup"),
				"Fact: the source implements or calls encryption for data confidentiality with symmetric keys of 128 and 256 bits, and key agreement by elliptic curves and ML-KEM: TLS 1.3, age files, AES-GCM records, TPM sessions.",
				"Classifying the product that the library is built into; Category 5 Part 2 has notes (mass market, primary function) that depend on the product.",
				"A classification of any product, and of the module itself."},
			{"740.13(e)", "License Exception TSU: publicly available encryption source code", nil, "",
				"Consulting the current text: this paragraph was for years the authorisation for publicly available encryption source code of 5D002, and 742.15(b) is where later editions treat it. Older notices still cite it.",
				"No exception is claimed for anyone."},
			{"742.15(b)", "Publicly available encryption source code", nil, "",
				"Fact to check against the current text: since 2016 publicly available encryption source code of 5D002 that meets this paragraph, and object code made from it, is not subject to the regulations; since 2021 the notification to BIS and the ENC Encryption Request Coordinator is asked for where the cryptography is non-standard. " +
					"Whether source is published as 734.7 means, and whether a product with changes still is, is its exporter's to establish.",
				"No notification was sent by the existence of this table. The algorithms are published ones: TLS 1.3, AES-GCM, XAES-256-GCM, ChaCha20-Poly1305, age, TPM 2.0 parameter encryption."},
			{"740.17", "License Exception ENC", nil, "",
				"Choosing a paragraph for a product that is not publicly available, self-classification reports, destinations.",
				"Nothing."},
			{"734.7", "Published technology and software", nil, "",
				"Establishing publication. Fact: the licence of the source is Apache-2.0, which lets everybody pass it on.",
				"Nothing."},
		},
	}
}

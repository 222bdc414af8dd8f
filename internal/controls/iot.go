package controls

func nistIR8259A() Framework {
	return Framework{
		ID: "nist-ir-8259a", Prefix: "ir8259a.", Title: "NIST IR 8259A, IoT Device Cybersecurity Capability Core Baseline", Edition: "May 2020",
		Source: "https://doi.org/10.6028/NIST.IR.8259A",
		Note:   "The baseline names six capabilities without numbers; the identifiers here are their names.",
		Controls: []Control{
			{"device-identification", "Device Identification", by("device-identity", "device-certificates", "module-identity"),
				"A logical identity from the TPM, and identities of modules.", "A physical identifier on the case.", "Physical identifiers."},
			{"device-configuration", "Device Configuration", by("strict-frames", "tenant-roles"),
				"Policies of flows take effect whole or not at all; assignments only when the owner signed them.", "Who may change files of configuration; the device's other settings, and its reset to a secure state.", "A configuration interface of the device."},
			{"data-protection", "Data Protection", by("volume-encryption", "mutual-tls", "volume-erasure", "remote-release"),
				"Stored and transmitted data is encrypted; it can be made unreadable for all.", "Data that is stored or sent elsewhere.", ""},
			{"logical-access", "Logical Access to Interfaces", by("flow-policy", "process-confinement", "attested-tunnel"),
				"Network interfaces serve authenticated and allowed peers only.", "Disabling local and debug interfaces.", "Debug ports, radios and local consoles."},
			{"software-update", "Software Update", by("signed-updates", "update-floors", "update-self-healing"),
				"Updates over the network or by stick, verified, with rollback only where it is allowed.", "Publishing them; notifying people.", ""},
			{"state-awareness", "Cybersecurity State Awareness", by("attestation", "boot-verification", "module-inventory", "install-report"),
				"The state of boot, modules and software is reported in a form that its device can't forge.", "Who looks, and what follows.", "Behaviour at run time beyond flows and measured files."},
		},
	}
}

func nistIR8425() Framework {
	return Framework{
		ID: "nist-ir-8425", Prefix: "ir8425.", Title: "NIST IR 8425, Profile of the IoT Core Baseline for Consumer IoT Products", Edition: "September 2022",
		Source: "https://doi.org/10.6028/NIST.IR.8425",
		Note:   "The profile speaks of products, of which a device is one component. Its four capabilities that are not technical are the developer's. Names were not checked against the report's text.",
		Controls: []Control{
			{"asset-identification", "Asset Identification", by("device-identity", "module-inventory"),
				"The product's nodes and modules are uniquely identified, and listed.", "Components that run without the library.", ""},
			{"product-configuration", "Product Configuration", by("strict-frames", "tenant-roles"),
				"Policies of flows take effect whole or not at all; assignments only when the owner signed them.", "Settings of the product, and its restoration to a secure default.", "Reset to the default."},
			{"data-protection", "Data Protection", by("volume-encryption", "tenant-encryption", "mutual-tls", "volume-erasure"),
				"Data is protected on the node, on the way and in the cloud.", "Data in apps.", ""},
			{"interface-access-control", "Interface Access Control", by("flow-policy", "strict-frames", "tenant-isolation"),
				"Interfaces of tunnel and store serve the authorised, and check what they are given.", "All other interfaces.", "Local interfaces."},
			{"software-update", "Software Update", by("signed-updates", "update-self-healing"),
				"Components that carry the updater are updated securely.", "Apps and back ends.", ""},
			{"state-awareness", "Cybersecurity State Awareness", by("attestation", "flow-audit", "audit-trail"),
				"State and use are recorded so that incidents can be found.", "Looking at the records.", ""},
			{"documentation", "Documentation", nil, "", "The developer's throughout the life of the product.", "Nothing; the library's documents are material for it."},
			{"query-reception", "Information and Query Reception", nil, "", "Receiving reports and questions.", "Nothing for the product. SECURITY.md receives reports about the library."},
			{"dissemination", "Information Dissemination", nil, "", "Telling customers of flaws, updates and ends of support.", "Nothing."},
			{"education", "Product Education and Awareness", nil, "", "Teaching customers.", "Nothing."},
		},
	}
}

func etsi303645() Framework {
	return Framework{
		ID: "etsi-en-303645", Prefix: "en303645-", Title: "ETSI EN 303 645, Cyber Security for Consumer Internet of Things", Edition: "V2.1.1, clauses 5.1 to 5.13 and 6",
		Source: "https://www.etsi.org/standards#search=EN%20303%20645",
		Note:   "Mapped by clause; provisions are named where one is served in particular. The conformance of a device is stated by its manufacturer, provision by provision (annex B). Titles of clauses were not checked against the standard's text.",
		Controls: []Control{
			{"5.1", "No universal default passwords", by("device-identity", "mutual-tls"),
				"The library has no passwords between machines: identities are keys made in each TPM.", "Passwords of people, if the product has any.", "Authentication of people."},
			{"5.2", "Implement a means to manage reports of vulnerabilities", nil, "",
				"A policy, a contact, and times.", "Nothing for the product. SECURITY.md has the library's."},
			{"5.3", "Keep software updated", by("signed-updates", "update-floors", "update-self-healing", "install-report"),
				"Secure installation (5.3-2), verified authenticity and integrity over a relation of trust (5.3-9, 5.3-10).", "Publishing in time, the support period, telling users.", ""},
			{"5.4", "Securely store sensitive security parameters", by("volume-encryption", "device-certificates", "boot-bound-secrets"),
				"Parameters are kept in the TPM or sealed to it (5.4-1); critical ones are unique to each device (5.4-4).", "A TPM that resists tampering (5.4-2); no secrets in source code.", ""},
			{"5.5", "Communicate securely", by("mutual-tls", "attested-tunnel", "flow-policy", "strict-frames"),
				"Best practice cryptography (5.5-1), authentication before use, secrecy of critical parameters (5.5-7).", "Every other interface; management of keys.", "Radios and local buses of the product."},
			{"5.6", "Minimize exposed attack surfaces", by("process-confinement", "flow-policy", "connection-limits"),
				"The node dials out; the forwarder listens on loopback; the kernel denies the rest.", "Ports, debug interfaces, services and code of the product.", "Physical interfaces."},
			{"5.7", "Ensure software integrity", by("boot-verification", "file-measurement", "attested-tunnel"),
				"Boot is verified remotely beside Secure Boot (5.7-1); a changed node is named and gets no connection (5.7-2).", "Enabling Secure Boot; acting on the alert.", "Secure Boot itself: the firmware does it."},
			{"5.8", "Ensure that personal data is secure", by("mutual-tls", "volume-encryption", "tenant-encryption"),
				"Data is encrypted on the way and at rest.", "Knowing which data is personal; documenting sensors.", ""},
			{"5.9", "Make systems resilient to outages", by("update-self-healing", "network-availability", "record-integrity"),
				"Power cuts lose nothing acknowledged; reconnection backs off with jitter.", "Local function while the network is gone.", "The product's own function."},
			{"5.10", "Examine system telemetry data", by("flow-audit", "install-report"),
				"Flow records and reports are material for it.", "Examining them.", "Analysis."},
			{"5.11", "Make it easy for users to delete user data", by("volume-erasure", "tenant-erasure"),
				"A volume and a tenant can be destroyed, with confirmation.", "A simple function for users.", "The user's interface."},
			{"5.12", "Make installation and maintenance of devices easy", nil, "",
				"Guidance and defaults of the product.", "Nothing for the product's users; the library's defaults are safe."},
			{"5.13", "Validate input data", by("strict-messages", "strict-frames", "strict-metadata", "strict-logs"),
				"Input over the library's interfaces is validated (5.13-1).", "Input of the product's own interfaces.", ""},
			{"6", "Data protection provisions for consumer IoT", nil, "",
				"Information, consent and purpose.", "Nothing: they are about what a manufacturer tells and asks."},
		},
	}
}

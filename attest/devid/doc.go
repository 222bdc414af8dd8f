// Package devid has what a maker's line needs beside package attest: the TCG's
// templates of initial keys (IAK, IDevID), the keys themselves, their
// certificates in the TPM's NV, and the certificate request TCG-CSR-IDEVID (TCG TPM 2.0 Keys for Device Identity and Attestation 1.1,
// sections 7.3 and 13.1; IEEE 802.1AR).
//
// On the maker's line start with Open and Store, and for the request with New;
// Key.Certificate finds a certificate again. Signing, quoting and certifying
// other keys need only the empty auth value. The templates' policy guards the
// keys' administration: CertifyInitial certifies one initial key with another,
// and a node whose attest.NodeConfig.AttestationKey names the IAK proves it to a
// registrar by credential activation.
//
// For requests start with New on the node and with Parse and Request.Verify in the CA. A
// verified request says that the key to be certified signs, is resident in a
// TPM and was certified there by an attestation key, and that an endorser
// vouches for the endorsement key named beside them. It does not say that all
// three are in one TPM: the CA sends a credential that only this TPM opens,
// as attest.Registrar does, before it issues.
package devid

package eventlog

import "fmt"

// Type is an event's type (PFP section 10.4.1). It is never authenticated.
type Type uint32

// Event types that this package's callers name. Others keep their number.
const (
	EvPrebootCert              Type = 0x00
	EvPostCode                 Type = 0x01
	EvNoAction                 Type = 0x03
	EvSeparator                Type = 0x04
	EvAction                   Type = 0x05
	EvEventTag                 Type = 0x06
	EvSCRTMContents            Type = 0x07
	EvSCRTMVersion             Type = 0x08
	EvCPUMicrocode             Type = 0x09
	EvPlatformConfigFlags      Type = 0x0A
	EvTableOfDevices           Type = 0x0B
	EvCompactHash              Type = 0x0C
	EvIPL                      Type = 0x0D
	EvIPLPartitionData         Type = 0x0E
	EvNonhostCode              Type = 0x0F
	EvNonhostConfig            Type = 0x10
	EvNonhostInfo              Type = 0x11
	EvOmitBootDeviceEvents     Type = 0x12
	EvPostCode2                Type = 0x13
	EvEFIVariableDriverConfig  Type = 0x80000001
	EvEFIVariableBoot          Type = 0x80000002
	EvEFIBootServicesApp       Type = 0x80000003
	EvEFIBootServicesDriver    Type = 0x80000004
	EvEFIRuntimeServiceDriver  Type = 0x80000005
	EvEFIGPTEvent              Type = 0x80000006
	EvEFIAction                Type = 0x80000007
	EvEFIPlatformFirmwareBlob  Type = 0x80000008
	EvEFIHandoffTables         Type = 0x80000009
	EvEFIPlatformFirmwareBlob2 Type = 0x8000000A
	EvEFIHandoffTables2        Type = 0x8000000B
	EvEFIVariableBoot2         Type = 0x8000000C
	EvEFIGPTEvent2             Type = 0x8000000D
	EvEFIHCRTMEvent            Type = 0x80000010
	EvEFIVariableAuthority     Type = 0x800000E0
	EvEFISPDMFirmwareBlob      Type = 0x800000E1
	EvEFISPDMFirmwareConfig    Type = 0x800000E2
	EvEFISPDMDevicePolicy      Type = 0x800000E3
	EvEFISPDMDeviceAuthority   Type = 0x800000E4
)

// String returns the TCG's name, or the number of a type that has none here.
func (t Type) String() string {
	switch t {
	case EvPrebootCert:
		return "EV_PREBOOT_CERT"
	case EvPostCode:
		return "EV_POST_CODE"
	case EvNoAction:
		return "EV_NO_ACTION"
	case EvSeparator:
		return "EV_SEPARATOR"
	case EvAction:
		return "EV_ACTION"
	case EvEventTag:
		return "EV_EVENT_TAG"
	case EvSCRTMContents:
		return "EV_S_CRTM_CONTENTS"
	case EvSCRTMVersion:
		return "EV_S_CRTM_VERSION"
	case EvCPUMicrocode:
		return "EV_CPU_MICROCODE"
	case EvPlatformConfigFlags:
		return "EV_PLATFORM_CONFIG_FLAGS"
	case EvTableOfDevices:
		return "EV_TABLE_OF_DEVICES"
	case EvCompactHash:
		return "EV_COMPACT_HASH"
	case EvIPL:
		return "EV_IPL"
	case EvIPLPartitionData:
		return "EV_IPL_PARTITION_DATA"
	case EvNonhostCode:
		return "EV_NONHOST_CODE"
	case EvNonhostConfig:
		return "EV_NONHOST_CONFIG"
	case EvNonhostInfo:
		return "EV_NONHOST_INFO"
	case EvOmitBootDeviceEvents:
		return "EV_OMIT_BOOT_DEVICE_EVENTS"
	case EvPostCode2:
		return "EV_POST_CODE2"
	case EvEFIVariableDriverConfig:
		return "EV_EFI_VARIABLE_DRIVER_CONFIG"
	case EvEFIVariableBoot:
		return "EV_EFI_VARIABLE_BOOT"
	case EvEFIBootServicesApp:
		return "EV_EFI_BOOT_SERVICES_APPLICATION"
	case EvEFIBootServicesDriver:
		return "EV_EFI_BOOT_SERVICES_DRIVER"
	case EvEFIRuntimeServiceDriver:
		return "EV_EFI_RUNTIME_SERVICES_DRIVER"
	case EvEFIGPTEvent:
		return "EV_EFI_GPT_EVENT"
	case EvEFIAction:
		return "EV_EFI_ACTION"
	case EvEFIPlatformFirmwareBlob:
		return "EV_EFI_PLATFORM_FIRMWARE_BLOB"
	case EvEFIHandoffTables:
		return "EV_EFI_HANDOFF_TABLES"
	case EvEFIPlatformFirmwareBlob2:
		return "EV_EFI_PLATFORM_FIRMWARE_BLOB2"
	case EvEFIHandoffTables2:
		return "EV_EFI_HANDOFF_TABLES2"
	case EvEFIVariableBoot2:
		return "EV_EFI_VARIABLE_BOOT2"
	case EvEFIGPTEvent2:
		return "EV_EFI_GPT_EVENT2"
	case EvEFIHCRTMEvent:
		return "EV_EFI_HCRTM_EVENT"
	case EvEFIVariableAuthority:
		return "EV_EFI_VARIABLE_AUTHORITY"
	case EvEFISPDMFirmwareBlob:
		return "EV_EFI_SPDM_FIRMWARE_BLOB"
	case EvEFISPDMFirmwareConfig:
		return "EV_EFI_SPDM_FIRMWARE_CONFIG"
	case EvEFISPDMDevicePolicy:
		return "EV_EFI_SPDM_DEVICE_POLICY"
	case EvEFISPDMDeviceAuthority:
		return "EV_EFI_SPDM_DEVICE_AUTHORITY"
	}
	return fmt.Sprintf("0x%08X", uint32(t))
}

// Section 1 of the header: version and errors.

@_exported public import CTamis  // a Swift program that imports Tamis sees the header
import TamisShims

@_cdecl("tamis_version") @implementation
public func tamis_version() -> UInt32 {
  UInt32(TAMIS_VERSION_MAJOR) << 16 | UInt32(TAMIS_VERSION_MINOR) << 8 | UInt32(TAMIS_VERSION_PATCH)
}

@_cdecl("tamis_status_name") @implementation
public func tamis_status_name(_ status: tamis_status) -> UnsafePointer<CChar>! {
  let name: StaticString =
    switch Int(status) {
    case TAMIS_OK: "TAMIS_OK"
    case TAMIS_E_ARGUMENT: "TAMIS_E_ARGUMENT"
    case TAMIS_E_MEMORY: "TAMIS_E_MEMORY"
    case TAMIS_E_FULL: "TAMIS_E_FULL"
    case TAMIS_E_IO: "TAMIS_E_IO"
    case TAMIS_E_FORMAT: "TAMIS_E_FORMAT"
    case TAMIS_E_UNSUPPORTED: "TAMIS_E_UNSUPPORTED"
    case TAMIS_E_CANCELLED: "TAMIS_E_CANCELLED"
    case TAMIS_E_BUDGET: "TAMIS_E_BUDGET"
    case TAMIS_E_BUSY: "TAMIS_E_BUSY"
    case TAMIS_E_INTERNAL: "TAMIS_E_INTERNAL"
    default: "unknown status"
    }
  return UnsafeRawPointer(name.utf8Start).assumingMemoryBound(to: CChar.self)
}

@_cdecl("tamis_last_error") @implementation
public func tamis_last_error() -> UnsafePointer<CChar>! { tamis_shims_error_text() }

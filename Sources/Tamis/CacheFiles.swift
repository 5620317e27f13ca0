// Section 4.1 of the header: sequences as files.

public import CTamis
import TamisCache
import TamisRuntime

@_cdecl("tamis_seq_save") @implementation
public func tamis_seq_save(
  _ seq: OpaquePointer?, _ path: UnsafePointer<CChar>?, _ fingerprint: UnsafeRawPointer?, _ fingerprint_bytes: Int,
  _ length: Int64
) -> tamis_status {
  boundary("tamis_seq_save") { () throws(TamisError) in
    let sequence: TokenSequence = try object(seq, "seq")
    try sequence.save(Tamis.path(path, "path"), fingerprint: fingerprintBytes(fingerprint, fingerprint_bytes), length: length)
  }
}

@_cdecl("tamis_seq_open") @implementation
public func tamis_seq_open(
  _ cache: OpaquePointer?, _ path: UnsafePointer<CChar>?, _ fingerprint: UnsafeRawPointer?, _ fingerprint_bytes: Int,
  _ options: UnsafePointer<tamis_open_options>?, _ seq: UnsafeMutablePointer<OpaquePointer?>?
) -> tamis_status {
  boundary("tamis_seq_open") { () throws(TamisError) in
    let cache: Cache = try object(cache, "cache")
    let path = try Tamis.path(path, "path")
    let fingerprint = try fingerprintBytes(fingerprint, fingerprint_bytes)
    let given = try Tamis.options(options, defaults: tamis_open_options())
    let seq = try required(seq, "seq")
    var wanted = OpenOptions()
    wanted.copies = given.copy != 0
    wanted.trustsPages = given.trust_pages != 0
    seq.pointee = handle(try TokenSequence.open(cache, path, fingerprint: fingerprint, wanted))
  }
}

/// fingerprint [count], NULL when 0.
func fingerprintBytes(_ fingerprint: UnsafeRawPointer?, _ count: Int) throws(TamisError) -> UnsafeRawBufferPointer {
  guard count >= 0, count <= 4096 else {
    throw TamisError(.argument, "fingerprint_bytes is \(count), expected at most 4096")
  }
  guard fingerprint != nil || count == 0 else { throw TamisError(.argument, "fingerprint is NULL") }
  return UnsafeRawBufferPointer(start: fingerprint, count: count)
}

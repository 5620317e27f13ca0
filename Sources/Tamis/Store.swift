// Section 4.2 of the header: the document store.

public import CTamis
import TamisCache
import TamisRuntime

@_cdecl("tamis_store_open") @implementation
public func tamis_store_open(
  _ ctx: OpaquePointer?, _ directory: UnsafePointer<CChar>?, _ max_bytes: UInt64,
  _ store: UnsafeMutablePointer<OpaquePointer?>?
) -> tamis_status {
  boundary("tamis_store_open") { () throws(TamisError) in
    let context: Context = try object(ctx, "ctx")
    let directory = try path(directory, "directory")
    let store = try required(store, "store")
    store.pointee = handle(try Store(context, directory, maxBytes: max_bytes))
  }
}

@_cdecl("tamis_store_free") @implementation
public func tamis_store_free(_ store: OpaquePointer?) { drop(store, Store.self) }

@_cdecl("tamis_store_put") @implementation
public func tamis_store_put(
  _ store: OpaquePointer?, _ seq: OpaquePointer?, _ fingerprint: UnsafeRawPointer?, _ fingerprint_bytes: Int,
  _ length: Int64
) -> tamis_status {
  boundary("tamis_store_put") { () throws(TamisError) in
    let store: Store = try object(store, "store")
    let sequence: TokenSequence = try object(seq, "seq")
    try store.put(sequence, fingerprint: fingerprintBytes(fingerprint, fingerprint_bytes), length: length)
  }
}

@_cdecl("tamis_store_match") @implementation
public func tamis_store_match(
  _ store: OpaquePointer?, _ cache: OpaquePointer?, _ fingerprint: UnsafeRawPointer?, _ fingerprint_bytes: Int,
  _ tokens: UnsafePointer<Int32>?, _ count: Int, _ seq: UnsafeMutablePointer<OpaquePointer?>?,
  _ matched: UnsafeMutablePointer<Int64>?
) -> tamis_status {
  boundary("tamis_store_match") { () throws(TamisError) in
    let store: Store = try object(store, "store")
    let cache: Cache = try object(cache, "cache")
    let fingerprint = try fingerprintBytes(fingerprint, fingerprint_bytes)
    let tokens = try ids(tokens, count)
    guard tokens != nil || count == 0 else { throw TamisError(.argument, "tokens is NULL") }
    let seq = try required(seq, "seq")
    let matched = try required(matched, "matched")
    guard let tokens else {
      seq.pointee = handle(try TokenSequence.create(cache))
      matched.pointee = 0
      return
    }
    let found = try store.match(cache, fingerprint: fingerprint, tokens: tokens, count: count)
    seq.pointee = handle(found.sequence)
    matched.pointee = Int64(found.matched)
  }
}

@_cdecl("tamis_store_read_stats") @implementation
public func tamis_store_read_stats(
  _ store: OpaquePointer?, _ stats: UnsafeMutablePointer<tamis_store_stats>?
) -> tamis_status {
  boundary("tamis_store_read_stats") { () throws(TamisError) in
    let store: Store = try object(store, "store")
    let stats = try required(stats, "stats")
    let size = try callersSize(stats, "stats")
    let now = try store.stats()
    var filled = tamis_store_stats()
    filled.size = UInt32(truncatingIfNeeded: size)
    filled.documents = UInt32(clamping: now.documents)
    filled.bytes = now.bytes
    filled.matches = now.matches
    filled.hits = now.hits
    filled.tokens_asked = now.tokensAsked
    filled.tokens_reused = now.tokensReused
    filled.stored = now.stored
    filled.evicted = now.evicted
    filled.damaged = now.damaged
    fill(stats, size, with: filled)
  }
}

// Section 4 of the header: the paged cache and its sequences.

public import CTamis
import TamisCache
import TamisOperators
import TamisRuntime

// MARK: Caches

@_cdecl("tamis_cache_create") @implementation
public func tamis_cache_create(
  _ ctx: OpaquePointer?, _ options: UnsafePointer<tamis_cache_options>?,
  _ cache: UnsafeMutablePointer<OpaquePointer?>?
) -> tamis_status {
  boundary("tamis_cache_create") { () throws(TamisError) in
    let context: Context = try object(ctx, "ctx")
    let cache = try required(cache, "cache")
    let given = try Tamis.options(options, defaults: tamis_cache_options())
    cache.pointee = handle(try Cache(context, cacheOptions(given)))
  }
}

/// Zero means default.
private func cacheOptions(_ given: tamis_cache_options) throws(TamisError) -> CacheOptions {
  var wanted = CacheOptions()
  if given.layers != 0 { wanted.layers = Int(given.layers) }
  if given.kv_heads != 0 { wanted.kvHeads = Int(given.kv_heads) }
  if given.key_dim != 0 { wanted.keyDim = Int(given.key_dim) }
  if given.value_dim != 0 { wanted.valueDim = Int(given.value_dim) }
  if given.index_dim != 0 { wanted.indexDim = Int(given.index_dim) }
  if given.page_tokens != 0 { wanted.pageTokens = Int(given.page_tokens) }
  if given.kv_dtype != 0 { wanted.kvDType = try dtype(given.kv_dtype, "kv_dtype") }
  if given.index_dtype != 0 {
    wanted.indexDType = given.index_dtype == -1 ? nil : try dtype(given.index_dtype, "index_dtype")
  }
  wanted.ownValues = given.own_values != 0
  wanted.maxTokens = given.max_tokens
  return wanted
}

private func dtype(_ number: Int32, _ name: StaticString) throws(TamisError) -> DType {
  guard let dtype = DType(rawValue: number) else {
    throw TamisError(.argument, "options: \(name) \(number) is unknown")
  }
  return dtype
}

@_cdecl("tamis_cache_free") @implementation
public func tamis_cache_free(_ cache: OpaquePointer?) { drop(cache, Cache.self) }

@_cdecl("tamis_cache_bytes") @implementation
public func tamis_cache_bytes(
  _ cache: OpaquePointer?, _ bytes: UnsafeMutablePointer<UInt64>?, _ tokens: UnsafeMutablePointer<UInt64>?
) -> tamis_status {
  boundary("tamis_cache_bytes") { () throws(TamisError) in
    let cache: Cache = try object(cache, "cache")
    try requireAligned(bytes, "bytes")
    try requireAligned(tokens, "tokens")
    let usage = cache.usage
    bytes?.pointee = usage.bytes
    tokens?.pointee = usage.tokens
  }
}

// MARK: Sequences

@_cdecl("tamis_seq_create") @implementation
public func tamis_seq_create(_ cache: OpaquePointer?, _ seq: UnsafeMutablePointer<OpaquePointer?>?) -> tamis_status {
  boundary("tamis_seq_create") { () throws(TamisError) in
    let cache: Cache = try object(cache, "cache")
    let seq = try required(seq, "seq")
    seq.pointee = handle(try TokenSequence.create(cache))
  }
}

@_cdecl("tamis_seq_free") @implementation
public func tamis_seq_free(_ seq: OpaquePointer?) { drop(seq, TokenSequence.self) }

@_cdecl("tamis_seq_fork") @implementation
public func tamis_seq_fork(
  _ seq: OpaquePointer?, _ length: Int64, _ fork: UnsafeMutablePointer<OpaquePointer?>?
) -> tamis_status {
  boundary("tamis_seq_fork") { () throws(TamisError) in
    let sequence: TokenSequence = try object(seq, "seq")
    let fork = try required(fork, "fork")
    fork.pointee = handle(try sequence.fork(length))
  }
}

@_cdecl("tamis_seq_match") @implementation
public func tamis_seq_match(
  _ cache: OpaquePointer?, _ tokens: UnsafePointer<Int32>?, _ count: Int,
  _ seq: UnsafeMutablePointer<OpaquePointer?>?, _ matched: UnsafeMutablePointer<Int64>?
) -> tamis_status {
  boundary("tamis_seq_match") { () throws(TamisError) in
    let cache: Cache = try object(cache, "cache")
    let tokens = try ids(tokens, count)
    guard tokens != nil || count == 0 else { throw TamisError(.argument, "tokens is NULL") }
    let seq = try required(seq, "seq")
    let matched = try required(matched, "matched")
    guard let tokens else {
      seq.pointee = handle(try TokenSequence.create(cache))
      matched.pointee = 0
      return
    }
    let found = try TokenSequence.match(cache, tokens: tokens, count: count)
    seq.pointee = handle(found.sequence)
    matched.pointee = Int64(found.matched)
  }
}

@_cdecl("tamis_seq_extend") @implementation
public func tamis_seq_extend(_ seq: OpaquePointer?, _ tokens: UnsafePointer<Int32>?, _ count: Int) -> tamis_status {
  boundary("tamis_seq_extend") { () throws(TamisError) in
    let sequence: TokenSequence = try object(seq, "seq")
    try sequence.extend(ids(tokens, count), count)
  }
}

/// tokens [count] or nil; a sequence holds at most 2^31-1.
func ids(_ tokens: UnsafePointer<Int32>?, _ count: Int) throws(TamisError) -> UnsafePointer<Int32>? {
  guard count >= 0, count <= Int(Int32.max) else {
    throw TamisError(.argument, "count is \(UInt(bitPattern: count)), expected at most 2^31-1")
  }
  guard UInt(bitPattern: tokens) % UInt(MemoryLayout<Int32>.alignment) == 0 else {
    throw TamisError(.argument, "tokens is not aligned to 4 bytes")
  }
  return tokens
}

@_cdecl("tamis_seq_truncate") @implementation
public func tamis_seq_truncate(_ seq: OpaquePointer?, _ length: Int64) -> tamis_status {
  boundary("tamis_seq_truncate") { () throws(TamisError) in
    let sequence: TokenSequence = try object(seq, "seq")
    try sequence.truncate(length)
  }
}

@_cdecl("tamis_seq_length") @implementation
public func tamis_seq_length(_ seq: OpaquePointer?, _ length: UnsafeMutablePointer<Int64>?) -> tamis_status {
  boundary("tamis_seq_length") { () throws(TamisError) in
    let sequence: TokenSequence = try object(seq, "seq")
    let length = try required(length, "length")
    length.pointee = Int64(try sequence.length())
  }
}

// MARK: Rows

@_cdecl("tamis_seq_write") @implementation
public func tamis_seq_write(
  _ seq: OpaquePointer?, _ layer: UInt32, _ first: Int64, _ key: UnsafePointer<tamis_tensor>?,
  _ value: UnsafePointer<tamis_tensor>?, _ index_key: UnsafePointer<tamis_tensor>?
) -> tamis_status {
  boundary("tamis_seq_write") { () throws(TamisError) in
    let sequence: TokenSequence = try object(seq, "seq")
    try sequence.write(
      layer: Int(layer), first: first, key: Tensor.optional(key, "key"), value: Tensor.optional(value, "value"),
      indexKey: Tensor.optional(index_key, "index_key"))
  }
}

@_cdecl("tamis_seq_read") @implementation
public func tamis_seq_read(
  _ seq: OpaquePointer?, _ layer: UInt32, _ first: Int64, _ key: UnsafePointer<tamis_tensor>?,
  _ value: UnsafePointer<tamis_tensor>?, _ index_key: UnsafePointer<tamis_tensor>?
) -> tamis_status {
  boundary("tamis_seq_read") { () throws(TamisError) in
    let sequence: TokenSequence = try object(seq, "seq")
    try sequence.read(
      layer: Int(layer), first: first, key: Tensor.optional(key, "key"), value: Tensor.optional(value, "value"),
      indexKey: Tensor.optional(index_key, "index_key"))
  }
}

// MARK: The verbs

/// The sequences of a batch. None may be named twice, so there are no more than the cache has.
func sequences(
  _ seqs: UnsafePointer<OpaquePointer?>?, _ count: Int
) throws(TamisError) -> [TokenSequence] {
  guard let seqs else { throw TamisError(.argument, "seqs is NULL") }
  guard UInt(bitPattern: seqs) % UInt(MemoryLayout<OpaquePointer>.alignment) == 0 else {
    throw TamisError(.argument, "seqs is not aligned to \(MemoryLayout<OpaquePointer>.alignment) bytes")
  }
  guard count > 0 else { throw TamisError(.argument, "count is \(UInt(bitPattern: count)), expected at least 1") }
  let first: TokenSequence = try object(seqs[0], "seqs[0]")
  let living = first.cache.sequenceCount
  guard count <= living else {
    throw TamisError(.argument, "count is \(count), but the cache of seqs[0] has \(living) sequences")
  }
  var found: [TokenSequence] = []
  found.reserveCapacity(count)
  for i in 0..<count { found.append(try object(seqs[i], "seqs[i]")) }
  return found
}

func rowCounts(
  _ rows: UnsafePointer<Int32>?, _ name: StaticString = "rows"
) throws(TamisError) -> UnsafePointer<Int32> {
  guard let rows else { throw TamisError(.argument, "\(name) is NULL") }
  guard UInt(bitPattern: rows) % UInt(MemoryLayout<Int32>.alignment) == 0 else {
    throw TamisError(.argument, "\(name) is not aligned to 4 bytes")
  }
  return rows
}

private func requireCausal(_ visible: UnsafePointer<Int32>?, _ all: UInt32) throws(TamisError) {
  guard visible == nil, all == 0 else {
    throw TamisError(.argument, "options: visible and all_visible must be unset, rows are the last of their sequence")
  }
}

@_cdecl("tamis_seq_select") @implementation
public func tamis_seq_select(
  _ seqs: UnsafePointer<OpaquePointer?>?, _ rows: UnsafePointer<Int32>?, _ count: Int, _ layer: UInt32,
  _ q: UnsafePointer<tamis_tensor>?, _ w: UnsafePointer<tamis_tensor>?,
  _ options: UnsafePointer<tamis_select_options>?, _ indices: UnsafePointer<tamis_tensor>?,
  _ top_scores: UnsafePointer<tamis_tensor>?
) -> tamis_status {
  boundary("tamis_seq_select") { () throws(TamisError) in
    let sequences = try sequences(seqs, count)
    let rows = try rowCounts(rows)
    let given = try Tamis.options(options, defaults: tamis_select_options())
    try requireCausal(given.visible, given.all_visible)
    let (q, w, indices) = (try Tensor(q, "q"), try Tensor(w, "w"), try Tensor(indices, "indices"))
    let topScores = try Tensor.optional(top_scores, "top_scores")
    let indexer = try sequences[0].cache.indexer(q: q, w: w)
    try requireIndices(indices, rows: q.shape[0], k: given.k)
    try requireTopScores(topScores, like: indices)
    try requireApart(indices, "indices", from: (q, "q"), (w, "w"), (topScores, "top_scores"))
    if let topScores { try requireApart(topScores, "top_scores", from: (q, "q"), (w, "w")) }
    try Batch.select(
      sequences, rows: rows, layer: Int(layer), indexer, n: q.shape[0], indices: indices, topScores: topScores)
  }
}

@_cdecl("tamis_seq_attend") @implementation
public func tamis_seq_attend(
  _ seqs: UnsafePointer<OpaquePointer?>?, _ rows: UnsafePointer<Int32>?, _ count: Int, _ layer: UInt32,
  _ q: UnsafePointer<tamis_tensor>?, _ options: UnsafePointer<tamis_attend_options>?,
  _ out: UnsafePointer<tamis_tensor>?, _ lse: UnsafePointer<tamis_tensor>?
) -> tamis_status {
  boundary("tamis_seq_attend") { () throws(TamisError) in
    let sequences = try sequences(seqs, count)
    let rows = try rowCounts(rows)
    let given = try Tamis.options(options, defaults: tamis_attend_options())
    try requireCausal(given.visible, given.all_visible)
    let (q, out) = (try Tensor(q, "q"), try Tensor(out, "out"))
    let (lse, indices) = (try Tensor.optional(lse, "lse"), try Tensor.optional(given.indices, "indices"))
    let shape = try sequences[0].cache.attention(q: q, scale: given.softmax_scale, sink: given.sink)
    try requireAttendOutputs(q, shape, out: out, lse: lse, indices: indices)
    try requireApart(out, "out", from: (q, "q"), (lse, "lse"), (indices, "indices"))
    if let lse { try requireApart(lse, "lse", from: (q, "q"), (indices, "indices")) }
    try requireApart(given, out: out, lse: lse)
    try Batch.attend(
      sequences, rows: rows, layer: Int(layer), shape, q: q, indices: indices, out: out, lse: lse)
  }
}

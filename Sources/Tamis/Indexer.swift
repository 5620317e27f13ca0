// Sections 8.1 and 8.2 of the header: captures and indexers.

public import CTamis
import TamisFit
import TamisOperators
import TamisRuntime

// MARK: 8.1 capture

@_cdecl("tamis_capture_create") @implementation
public func tamis_capture_create(
  _ ctx: OpaquePointer?, _ capture: UnsafeMutablePointer<OpaquePointer?>?
) -> tamis_status {
  boundary("tamis_capture_create") { () throws(TamisError) in
    let context: Context = try object(ctx, "ctx")
    let capture = try required(capture, "capture")
    capture.pointee = handle(Capture(context))
  }
}

@_cdecl("tamis_capture_free") @implementation
public func tamis_capture_free(_ capture: OpaquePointer?) { drop(capture, Capture.self) }

@_cdecl("tamis_capture_add") @implementation
public func tamis_capture_add(
  _ capture: OpaquePointer?, _ x: UnsafePointer<tamis_tensor>?, _ r: UnsafePointer<tamis_tensor>?,
  _ attention: UnsafePointer<tamis_tensor>?, _ options: UnsafePointer<tamis_capture_options>?
) -> tamis_status {
  boundary("tamis_capture_add") { () throws(TamisError) in
    let capture: Capture = try object(capture, "capture")
    let given = try Tamis.options(options, defaults: tamis_capture_options())
    var input = CaptureInput(hidden: try Tensor(x, "x"))
    input.features = try Tensor.optional(r, "r")
    input.attention = try Tensor.optional(attention, "attention")
    input.queries = try Tensor.optional(given.queries, "queries")
    input.keys = try Tensor.optional(given.keys, "keys")
    input.softmaxScale = given.softmax_scale
    input.positions = try aligned(given.positions, "positions")
    input.allVisible = given.all_visible != 0
    try capture.add(input)
  }
}

/// An array of the caller that may be NULL.
private func aligned<Element>(
  _ array: UnsafePointer<Element>?, _ name: StaticString
) throws(TamisError) -> UnsafePointer<Element>? {
  try requireAligned(UnsafeMutablePointer(mutating: array), name)
  return array
}

@_cdecl("tamis_capture_size") @implementation
public func tamis_capture_size(
  _ capture: OpaquePointer?, _ sequences: UnsafeMutablePointer<UInt64>?, _ rows: UnsafeMutablePointer<UInt64>?,
  _ bytes: UnsafeMutablePointer<UInt64>?
) -> tamis_status {
  boundary("tamis_capture_size") { () throws(TamisError) in
    let capture: Capture = try object(capture, "capture")
    try requireAligned(sequences, "sequences")
    try requireAligned(rows, "rows")
    try requireAligned(bytes, "bytes")
    let size = try capture.size()
    sequences?.pointee = UInt64(truncatingIfNeeded: size.sequences)
    rows?.pointee = UInt64(truncatingIfNeeded: size.rows)
    bytes?.pointee = UInt64(truncatingIfNeeded: size.bytes)
  }
}

// MARK: 8.2 indexer

@_cdecl("tamis_indexer_create") @implementation
public func tamis_indexer_create(
  _ ctx: OpaquePointer?, _ options: UnsafePointer<tamis_indexer_options>?,
  _ indexer: UnsafeMutablePointer<OpaquePointer?>?
) -> tamis_status {
  boundary("tamis_indexer_create") { () throws(TamisError) in
    let context: Context = try object(ctx, "ctx")
    let indexer = try required(indexer, "indexer")
    let given = try Tamis.options(options, defaults: tamis_indexer_options())
    let dim = given.dim == 0 ? 64 : Int(given.dim)
    let shape = try IndexerShape(
      width: Int(given.width), features: Int(given.features == 0 ? given.width : given.features),
      heads: given.heads == 0 ? 4 : Int(given.heads), dim: dim, rope: try ropeDim(given) ?? dim / 4 &* 2)
    indexer.pointee = handle(
      try LearnedIndexer(context, shape, frequencies: frequencies(given, rope: shape.rope), seed: given.seed))
  }
}

/// nil: half of the dims.
private func ropeDim(_ options: tamis_indexer_options) throws(TamisError) -> Int? {
  guard options.rope_dim >= -1 else {
    throw TamisError(.argument, "options: rope_dim is \(options.rope_dim), expected -1 or more")
  }
  return options.rope_dim == 0 ? nil : max(0, Int(options.rope_dim))
}

private func frequencies(_ options: tamis_indexer_options, rope: Int) throws(TamisError) -> [Float] {
  guard let given = try aligned(options.rope_frequencies, "rope_frequencies") else {
    return try LearnedIndexer.frequencies(rope: rope, base: options.rope_base == 0 ? 10000 : options.rope_base)
  }
  return Array(UnsafeBufferPointer(start: given, count: rope / 2))
}

@_cdecl("tamis_indexer_free") @implementation
public func tamis_indexer_free(_ indexer: OpaquePointer?) { drop(indexer, LearnedIndexer.self) }

@_cdecl("tamis_indexer_load") @implementation
public func tamis_indexer_load(
  _ ctx: OpaquePointer?, _ path: UnsafePointer<CChar>?, _ prefix: UnsafePointer<CChar>?,
  _ options: UnsafePointer<tamis_indexer_options>?, _ indexer: UnsafeMutablePointer<OpaquePointer?>?
) -> tamis_status {
  boundary("tamis_indexer_load") { () throws(TamisError) in
    let context: Context = try object(ctx, "ctx")
    let indexer = try required(indexer, "indexer")
    let given = try Tamis.options(options, defaults: tamis_indexer_options())
    let (path, prefix) = (try someText(path, "path"), try text(prefix, "prefix") ?? "")
    let loaded = try IndexerFile.load(context, path: path, prefix: prefix, rope: ropeDim(given)) {
      rope throws(TamisError) in try frequencies(given, rope: rope)
    }
    indexer.pointee = handle(loaded)
  }
}

/// Text that must be there.
private func someText(_ pointer: UnsafePointer<CChar>?, _ name: StaticString) throws(TamisError) -> String {
  guard let text = try text(pointer, name) else { throw TamisError(.argument, "\(name) is NULL") }
  guard !text.isEmpty else { throw TamisError(.argument, "\(name) is empty") }
  return text
}

@_cdecl("tamis_indexer_save") @implementation
public func tamis_indexer_save(
  _ indexers: UnsafePointer<OpaquePointer?>?, _ prefixes: UnsafePointer<UnsafePointer<CChar>?>?, _ count: Int,
  _ path: UnsafePointer<CChar>?
) -> tamis_status {
  boundary("tamis_indexer_save") { () throws(TamisError) in
    guard let indexers = try aligned(indexers, "indexers"), let prefixes = try aligned(prefixes, "prefixes") else {
      throw TamisError(.argument, "\(indexers == nil ? "indexers" : "prefixes") is NULL")
    }
    guard count >= 1, count <= 4096 else { throw TamisError(.argument, "count is \(count), expected 1 to 4096") }
    var all: [(prefix: String, indexer: LearnedIndexer)] = []
    for i in 0..<count {
      let indexer: LearnedIndexer = try object(indexers[i], "indexers: one")
      all.append((try text(prefixes[i], "prefixes") ?? "", indexer))
    }
    guard let context = all.first?.indexer.context else { return }
    try IndexerFile.save(all, to: someText(path, "path"), context)
  }
}

@_cdecl("tamis_indexer_info") @implementation
public func tamis_indexer_info(
  _ indexer: OpaquePointer?, _ options: UnsafeMutablePointer<tamis_indexer_options>?
) -> tamis_status {
  boundary("tamis_indexer_info") { () throws(TamisError) in
    let indexer: LearnedIndexer = try object(indexer, "indexer")
    let options = try required(options, "options")
    let theirs = try callersSize(UnsafePointer(options), "options")
    let shape = indexer.shape
    var info = tamis_indexer_options()
    info.size = UInt32(truncatingIfNeeded: theirs)
    info.width = UInt32(truncatingIfNeeded: shape.width)
    info.features = UInt32(truncatingIfNeeded: shape.features)
    info.heads = UInt32(truncatingIfNeeded: shape.heads)
    info.dim = UInt32(truncatingIfNeeded: shape.dim)
    info.rope_dim = shape.rope == 0 ? -1 : Int32(truncatingIfNeeded: shape.rope)
    fill(options, theirs, with: info)
  }
}

@_cdecl("tamis_indexer_project") @implementation
public func tamis_indexer_project(
  _ indexer: OpaquePointer?, _ x: UnsafePointer<tamis_tensor>?, _ r: UnsafePointer<tamis_tensor>?,
  _ positions: UnsafePointer<Int32>?, _ q: UnsafePointer<tamis_tensor>?, _ w: UnsafePointer<tamis_tensor>?,
  _ key: UnsafePointer<tamis_tensor>?
) -> tamis_status {
  boundary("tamis_indexer_project") { () throws(TamisError) in
    let indexer: LearnedIndexer = try object(indexer, "indexer")
    try indexer.project(
      hidden: Tensor(x, "x"), features: Tensor.optional(r, "r"), positions: aligned(positions, "positions"),
      q: Tensor.optional(q, "q"), w: Tensor.optional(w, "w"), key: Tensor.optional(key, "key"))
  }
}

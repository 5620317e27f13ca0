// Sequences as files: save writes one, open makes a sequence whose pages lie in the mapped file. Kernels read them
// there; a page is copied into the cache when it is written to or when the sequence grows into it. The mapping lives as long as
// a sequence holds a page of it. Refuses files of another layout or model, and damaged ones.

import Synchronization
import TamisFormats
import TamisOperators
package import TamisRuntime

package struct OpenOptions: Sendable {
  /// Pages are read into memory of the cache instead of being mapped.
  package var copies = false
  /// The pages' checksums are not compared.
  package var trustsPages = false

  package init() {}
}

extension TokenSequence {
  // MARK: Saving

  /// Bytes of pages that are prepared and written at a time, unless one page is larger.
  private static let groupBytes = 4 << 20

  /// The first `length` tokens (-1: all) as a file that is there whole or not at all.
  package func save(
    _ path: String, fingerprint: UnsafeRawBufferPointer, length: Int64
  ) throws(TamisError) {
    try busy.enter("sequence")
    defer { busy.leave() }
    let header = try fileHeader(fingerprint, length: length)
    try write(path, header, fingerprint: fingerprint)
  }

  /// What the file of the first `length` tokens (-1: all) begins with.
  func fileHeader(_ fingerprint: UnsafeRawBufferPointer, length: Int64) throws(TamisError) -> CacheFileHeader {
    guard length >= -1, length <= Int64(count) else {
      throw TamisError(.argument, "length is \(length), expected -1 to \(count)")
    }
    return try CacheFileHeader(
      shape: cache.options.fileShape, tokens: length == -1 ? count : Int(length), pageBytes: layout.pageBytes,
      fingerprintBytes: fingerprint.count)
  }

  func write(
    _ path: String, _ header: CacheFileHeader, fingerprint: UnsafeRawBufferPointer
  ) throws(TamisError) {
    var writer = try CacheFileWriter(path, header, fingerprint: fingerprint, tokens: tokenIds, cache.context)
    if header.pages > 0, let ledger = entry.pointee.ledger { try writePages(ledger, header, &writer) }
    try writer.commit()
  }

  private func writePages(
    _ ledger: Ledger, _ header: CacheFileHeader, _ writer: inout CacheFileWriter
  ) throws(TamisError) {
    let context = cache.context
    let token = context.beginCall()
    let group = min(header.pages, max(1, Self.groupBytes / header.pageStride))
    let imageBytes = try Size.product(group, header.pageStride)
    let scratch = try context.borrowScratch(bytes: Size.sum(imageBytes, group &* 8))
    defer { context.returnScratch(scratch) }
    // What no row covers stays zero: nothing of the host's memory gets into the file.
    scratch.pointer.initializeMemory(as: UInt8.self, repeating: 0, count: imageBytes)
    let sums = (scratch.pointer + imageBytes).bindMemory(to: UInt64.self, capacity: group)
    sums.initialize(repeating: 0, count: group)
    var first = 0
    while first < header.pages {
      try context.checkCancelled(token)
      let count = min(group, header.pages &- first)
      context.parallel(count: count, workers: count) { i, _ in
        let image = Page(scratch.pointer + i &* header.pageStride, nil)
        let rows = min(layout.pageTokens, header.tokens &- (first &+ i) &* layout.pageTokens)
        layout.copy(from: ledger.page(first &+ i), to: image, rows: rows)
        layout.clear(image, rows: rows..<layout.pageTokens)
        sums[i] = XXH64.of(UnsafeRawBufferPointer(start: image.memory, count: header.pageBytes))
      }
      try writer.write(scratch.pointer, sums: UnsafeBufferPointer(start: sums, count: count))
      first &+= count
    }
  }

  // MARK: Opening

  /// A new sequence with the tokens of a file.
  package static func open(
    _ cache: Cache, _ path: String, fingerprint: UnsafeRawBufferPointer, _ options: OpenOptions
  ) throws(TamisError) -> TokenSequence {
    let file = try CacheFile(path, cache.context)
    try file.require(cache.options.fileShape, pageBytes: cache.layout.pageBytes, fingerprint: fingerprint)
    let entry = try makeEntry(cache, pages: file.header.pages)
    do {
      if !options.trustsPages, !options.copies { try verify(file, cache.context) }
      if let ledger = entry.pointee.ledger {
        try options.copies ? copyPages(file, cache, ledger, options) : mapPages(file, ledger)
        if let tokens = file.tokens { ledger.tokens.update(from: tokens, count: file.header.tokens) }
      }
    } catch {
      discard(entry, cache)
      throw error
    }
    entry.pointee.length = file.header.tokens
    cache.locked { $0.insert(entry) }
    return TokenSequence(cache, entry)
  }

  private static func mapPages(_ file: borrowing CacheFile, _ ledger: Ledger) throws(TamisError) {
    let mapped = try file.map()
    guard let base = mapped.bytes.baseAddress, mapped.bytes.count >= file.header.fileBytes else {
      throw TamisError(.io, "\(mapped.path): became shorter while it was opened")
    }
    for number in 0..<file.header.pages {
      let page = Page(
        UnsafeMutableRawPointer(mutating: base + file.header.pageOffset(number)), Unmanaged.passUnretained(mapped))
      page.retain()
      ledger.setPage(number, page)
    }
  }

  private static func copyPages(
    _ file: borrowing CacheFile, _ cache: Cache, _ ledger: Ledger, _ options: OpenOptions
  ) throws(TamisError) {
    let pages = file.header.pages
    let token = cache.context.beginCall()
    try cache.reserve(pages)
    var made = 0
    do {
      while made < pages {
        try cache.context.checkCancelled(token)
        ledger.setPage(made, try cache.makePage())
        made &+= 1
        try fill(ledger.page(made &- 1), made &- 1, file, options)
      }
    } catch {
      for page in 0..<made { cache.release(ledger.page(page)) }
      cache.unreserve(pages &- made)
      throw error
    }
  }

  private static func fill(
    _ page: Page, _ number: Int, _ file: borrowing CacheFile, _ options: OpenOptions
  ) throws(TamisError) {
    let bytes = UnsafeMutableRawBufferPointer(start: page.memory, count: file.header.pageBytes)
    defer { _ = Page(fresh: page.memory) }  // the file's page begins with zeros where ours has its count
    try file.read(page: number, first: 0, into: bytes)
    guard options.trustsPages || XXH64.of(UnsafeRawBufferPointer(bytes)) == file.checksum(page: number) else {
      throw file.damaged(page: number)
    }
  }

  // MARK: Verifying

  /// Bytes that a thread reads at a time.
  private static let chunkBytes = 1 << 16

  /// Compares every page with its checksum, by reading and on all threads.
  private static func verify(_ file: borrowing CacheFile, _ context: Context) throws(TamisError) {
    let (pages, token) = (file.header.pages, context.beginCall())
    let workers = max(1, min(context.threads, pages))
    let scratch = try context.borrowScratch(bytes: Size.product(workers, chunkBytes))
    defer { context.returnScratch(scratch) }
    let firstBad = Atomic<Int>(pages)
    context.parallel(count: pages, workers: workers) { page, worker in
      guard page < firstBad.load(ordering: .relaxed), !context.cancelled(token) else { return }
      let chunk = UnsafeMutableRawBufferPointer(start: scratch.pointer + worker &* chunkBytes, count: chunkBytes)
      let intact = try? isIntact(page, file, chunk)
      if intact != true { firstBad.min(page, ordering: .relaxed) }
    }
    try context.checkCancelled(token)
    let bad = firstBad.load(ordering: .relaxed)
    guard bad < pages else { return }
    _ = try isIntact(bad, file, UnsafeMutableRawBufferPointer(start: scratch.pointer, count: chunkBytes))
    throw file.damaged(page: bad)
  }

  private static func isIntact(
    _ page: Int, _ file: borrowing CacheFile, _ chunk: UnsafeMutableRawBufferPointer
  ) throws(TamisError) -> Bool {
    var sum = XXH64()
    var at = 0
    while at < file.header.pageBytes {
      let piece = UnsafeMutableRawBufferPointer(
        start: chunk.baseAddress, count: min(chunk.count, file.header.pageBytes &- at))
      try file.read(page: page, first: at, into: piece)
      sum.add(UnsafeRawBufferPointer(piece))
      at &+= piece.count
    }
    return sum.finished(UnsafeRawBufferPointer(start: nil, count: 0)) == file.checksum(page: page)
  }
}

extension CacheOptions {
  /// What must agree between a file and a cache.
  var fileShape: CacheFileShape {
    var shape = CacheFileShape()
    shape.layers = Int32(truncatingIfNeeded: layers)
    shape.kvHeads = Int32(truncatingIfNeeded: kvHeads)
    shape.keyDim = Int32(truncatingIfNeeded: keyDim)
    shape.valueDim = Int32(truncatingIfNeeded: valueDim)
    shape.ownValues = ownValues ? 1 : 0
    shape.indexDim = indexDType == nil ? 0 : Int32(truncatingIfNeeded: indexDim)
    shape.kvDType = kvDType.rawValue
    shape.indexDType = indexDType?.rawValue ?? -1
    shape.pageTokens = Int32(truncatingIfNeeded: pageTokens)
    return shape
  }
}

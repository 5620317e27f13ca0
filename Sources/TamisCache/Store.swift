// Documents in a folder, for all processes of a machine: sequences are put there once and found again by how they
// begin. Files are never changed, only made whole and removed, so readers need no lock; who makes or removes one holds the
// folder's lock, which ends with its process. The folder stays under its cap: the longest unused go first. Refuses
// documents with unknown tokens, and one that is larger than the cap.

import TamisFormats
package import TamisRuntime

package struct StoreStats: Sendable {
  package var documents: UInt64 = 0
  package var bytes: UInt64 = 0
  /// Of this store object since it was opened.
  package var matches: UInt64 = 0
  package var hits: UInt64 = 0
  package var tokensAsked: UInt64 = 0
  package var tokensReused: UInt64 = 0
  package var stored: UInt64 = 0
  package var evicted: UInt64 = 0
  package var damaged: UInt64 = 0
}

package final class Store: @unchecked Sendable {
  private static let suffix = ".tamis"
  private static let lockName = "lock"
  /// A folder may have been changed again within a tick of the clock that dates it.
  private static let settledNanoseconds: Int64 = 1_000_000_000

  /// Documents that may turn out to be gone or damaged in one match.
  private static let attempts = 16

  private let context: Context
  private let folder: Folder
  private let maxBytes: Int
  private let busy = BusyFlag()
  private var documents: [StoredDocument] = []
  /// Bytes of all cache files, also of those that are no use.
  private var bytes = 0
  private var strays: [FolderEntry] = []
  private var scanned: (folder: Int64, clock: Int64) = (0, 0)
  private var counted = StoreStats()

  /// maxBytes 0: no cap.
  package init(_ context: Context, _ path: String, maxBytes: UInt64) throws(TamisError) {
    self.context = context
    self.maxBytes = maxBytes == 0 ? Int.max : Int(clamping: maxBytes)
    folder = try Folder(path)
    try scan()
  }

  package func stats() throws(TamisError) -> StoreStats {
    try busy.enter("store")
    defer { busy.leave() }
    try scan()
    var stats = counted
    stats.documents = UInt64(documents.count)
    stats.bytes = UInt64(clamping: bytes)
    return stats
  }

  // MARK: Looking

  /// Reads what is new in the folder, and forgets what is gone.
  private func scan() throws(TamisError) {
    let state = (try folder.changed(), Clock.date())
    if state.0 == scanned.folder, scanned.clock &- state.0 > Self.settledNanoseconds { return }
    var known: [String: StoredDocument] = [:]
    for document in documents { known[document.name] = document }
    var found: [StoredDocument] = []
    var useless: [FolderEntry] = []
    var total = 0
    let (folder, context) = (folder, context)
    try folder.forEachFile { (entry: FolderEntry) throws(TamisError) in
      guard entry.name.hasSuffix(Self.suffix) else { return }
      total &+= entry.bytes
      if let old = known[entry.name], old.file == entry.file, old.bytes == entry.bytes {
        old.used = entry.used
        found.append(old)
      } else if let document = try StoredDocument.read(entry, folder, context) {
        found.append(document)
      } else {
        useless.append(entry)
      }
    }
    (documents, strays, bytes, scanned) = (found, useless, total, state)
  }

  // MARK: Matching

  /// The longest known beginning of tokens [count], living in the cache or stored, as a sequence of its own.
  package func match(
    _ cache: Cache, fingerprint: UnsafeRawBufferPointer, tokens: UnsafePointer<Int32>, count: Int
  ) throws(TamisError) -> (sequence: TokenSequence, matched: Int) {
    try busy.enter("store")
    defer { busy.leave() }
    var result = try TokenSequence.match(cache, tokens: tokens, count: count)
    for _ in 0..<Self.attempts {
      guard let best = try longest(cache, fingerprint, tokens, count), best.length > result.matched else { break }
      guard let sequence = try open(best.document, cache, fingerprint) else { continue }
      let matched = sequence.commonLength(tokens, count)
      try sequence.truncate(Int64(matched))
      if matched > result.matched { result = (sequence, matched) }
      break
    }
    counted.matches &+= 1
    counted.hits &+= result.matched > 0 ? 1 : 0
    counted.tokensAsked &+= UInt64(count)
    counted.tokensReused &+= UInt64(result.matched)
    return result
  }

  private func longest(
    _ cache: Cache, _ fingerprint: UnsafeRawBufferPointer, _ tokens: UnsafePointer<Int32>, _ count: Int
  ) throws(TamisError) -> (document: StoredDocument, length: Int)? {
    try scan()
    let start = Chain.start(cache.options.fileShape, fingerprint)
    let pageTokens = cache.layout.pageTokens
    let chain = try Chain.of(tokens, count, pageTokens: pageTokens, from: start, context)
    let candidates = documents.filter { $0.start == start }
    let pages = candidates.map { $0.sharedPages(chain.elements) }
    guard let most = pages.max() else { return nil }
    var best: (document: StoredDocument, length: Int)?
    for (document, shared) in zip(candidates, pages) where shared == most {
      let tail = try document.sharedTail(tokens, count, pages: most, folder, context)
      let length = most &* pageTokens &+ tail
      if length > best?.length ?? 0 { best = (document, length) }
    }
    return best
  }

  /// nil: it is gone or damaged, and no longer in the list.
  private func open(
    _ document: StoredDocument, _ cache: Cache, _ fingerprint: UnsafeRawBufferPointer
  ) throws(TamisError) -> TokenSequence? {
    var options = OpenOptions()
    options.trustsPages = document.verified
    do {
      let sequence = try TokenSequence.open(cache, folder.path(of: document.name), fingerprint: fingerprint, options)
      document.verified = true
      folder.touch(document.name)
      return sequence
    } catch {
      guard error.status == .io || error.status == .format else { throw error }
      if error.status == .format {
        folder.remove(document.name)
        counted.damaged &+= 1
      }
      documents.removeAll { $0 === document }
      scanned = (0, 0)
      return nil
    }
  }

  // MARK: Putting

  /// Keeps the first `length` tokens (-1: all), unless they are there already. The oldest documents make room.
  package func put(
    _ sequence: TokenSequence, fingerprint: UnsafeRawBufferPointer, length: Int64
  ) throws(TamisError) {
    try busy.enter("store")
    defer { busy.leave() }
    try sequence.busy.enter("sequence")
    defer { sequence.busy.leave() }
    let header = try sequence.fileHeader(fingerprint, length: length)
    let name = try self.name(sequence, header, fingerprint)
    let token = context.beginCall()
    let lock = try FolderLock(folder, Self.lockName, context, token)
    defer { extendLifetime(lock) }
    scanned = (0, 0)
    try scan()
    if documents.contains(where: { $0.name == name && $0.tokens == header.tokens }) { return folder.touch(name) }
    try makeRoom(for: header.fileBytes, replacing: name)
    try sequence.write(folder.path(of: name), header, fingerprint: fingerprint)
    counted.stored &+= 1
    scanned = (0, 0)
  }

  private func name(
    _ sequence: TokenSequence, _ header: CacheFileHeader, _ fingerprint: UnsafeRawBufferPointer
  ) throws(TamisError) -> String {
    let count = header.tokens
    var last = Chain.start(header.shape, fingerprint)
    if let tokens = sequence.tokenIds, count > 0 {
      guard Chain.allKnown(tokens, count) else {
        throw TamisError(.argument, "seq: holds tokens without ids, by which nothing could find it")
      }
      last = Chain.next(last, tokens, count)
    }
    let digits = String(last, radix: 16)
    return String(repeating: "0", count: max(0, 16 &- digits.utf8.count)) + digits + Self.suffix
  }

  private func makeRoom(for needed: Int, replacing name: String) throws(TamisError) {
    guard needed <= maxBytes else {
      throw TamisError(.full, "store: a document of \(needed) bytes is more than max_bytes \(maxBytes)")
    }
    for entry in strays where entry.name == name || bytes > maxBytes &- needed {
      folder.remove(entry.name)
      bytes &-= entry.bytes
    }
    documents.sort { $0.used > $1.used }
    while bytes > maxBytes &- needed, let oldest = documents.popLast() {
      folder.remove(oldest.name)
      bytes &-= oldest.bytes
      counted.evicted &+= 1
    }
  }
}

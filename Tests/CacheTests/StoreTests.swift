// The document store against a plain list of what was put: longest beginning, cap and order of eviction, other models and
// layouts, files that vanish or are damaged, two stores of one folder, failing memory.

import Foundation
import TamisCache
import TamisOperators
import TamisReference
import TamisRuntime
import TamisTestSupport
import Testing

extension Store {
  func put(_ sequence: TokenSequence, _ fingerprint: String = "model", length: Int64 = -1) throws {
    var name = fingerprint
    try name.withUTF8 { try put(sequence, fingerprint: UnsafeRawBufferPointer($0), length: length) }
  }

  func match(
    _ cache: Cache, _ tokens: [Int32], _ fingerprint: String = "model"
  ) throws -> (sequence: TokenSequence, matched: Int) {
    var name = fingerprint
    return try name.withUTF8 {
      try match(cache, fingerprint: UnsafeRawBufferPointer($0), tokens: tokens, count: tokens.count)
    }
  }
}

@Suite struct StoreTests {
  private func document(_ cache: Cache, _ ids: [Int32]) throws -> TokenSequence {
    let sequence = try TokenSequence.create(cache)
    try sequence.extend(ids, ids.count)
    var options = cache.options
    options.kvHeads = 1
    let (key, index) = try (Held(.f32, [ids.count, options.keyDim]), Held(.f32, [ids.count, options.indexDim]))
    // Rows say which token they are of.
    for (row, id) in ids.enumerated() {
      for j in 0..<options.keyDim { key.floats[row * options.keyDim + j] = Float(id) }
      for j in 0..<options.indexDim { index.floats[row * options.indexDim + j] = Float(id) }
    }
    try sequence.write(layer: 0, first: 0, key: key.tensor, value: nil, indexKey: index.tensor)
    return sequence
  }

  /// Do the rows say the tokens that they should be of?
  private func holds(_ sequence: TokenSequence, _ ids: [Int32]) throws -> Bool {
    guard try sequence.length() == ids.count else { return false }
    guard !ids.isEmpty else { return true }
    let d = sequence.cache.options.keyDim
    let key = try Held(.f32, [ids.count, d])
    try sequence.read(layer: 0, first: 0, key: key.tensor, value: nil, indexKey: nil)
    return ids.indices.allSatisfy { key.floats[$0 * d] == Float(ids[$0]) && key.floats[$0 * d + d - 1] == Float(ids[$0]) }
  }

  /// Random documents with common beginnings; the match is the longest among all of them, to the token.
  @Test(arguments: [UInt64(1), 2])
  func theLongestBeginningIsFound(_ seed: UInt64) throws {
    let place = try Workplace()
    let context = try makeContext()
    var numbers = SplitMix64(seed: seed)
    let writer = try Cache(context, Combination.small)
    let store = try Store(context, place.folder.path, maxBytes: 0)
    let reader = try Store(context, place.folder.path, maxBytes: 0)
    var kept: [[Int32]] = []
    func ids() -> [Int32] {
      let source = kept.isEmpty ? [] : kept[numbers.integer(below: kept.count)]
      return Array(source.prefix(numbers.integer(below: source.count + 1)))
        + (0..<numbers.integer(below: 60)).map { _ in Int32(numbers.integer(below: 2)) }
    }
    for step in 0..<60 {
      let new = ids()
      if !new.isEmpty {
        try store.put(document(writer, new))
        kept.append(new)
      }
      for looking in [store, reader] {
        let wanted = ids()
        let expected = kept.map { zip($0, wanted).prefix { $0 == $1 }.count }.max() ?? 0
        let cache = try Cache(context, Combination.small)
        let (sequence, matched) = try looking.match(cache, wanted)
        #expect(matched == expected, "step \(step)")
        #expect(try holds(sequence, Array(wanted.prefix(matched))))
      }
    }
    #expect(try store.stats().documents == UInt64(Set(kept).count))
    #expect(try store.stats().bytes == reader.stats().bytes)
    let stats = try reader.stats()
    #expect(stats.matches == 60 && stats.hits <= 60 && stats.tokensReused <= stats.tokensAsked)
  }

  /// Living sequences count too, and are taken when they are as long.
  @Test func livingSequencesMatchAsWell() throws {
    let place = try Workplace()
    let context = try makeContext()
    let cache = try Cache(context, Combination.small)
    let store = try Store(context, place.folder.path, maxBytes: 0)
    let ids = (0..<40).map { Int32($0) }
    try store.put(document(cache, ids), length: 33)
    let living = try document(cache, Array(ids.prefix(20)))
    let (longer, n) = try store.match(cache, ids)
    #expect(try n == 33 && holds(longer, Array(ids.prefix(33))))
    let before = cache.usage.tokens
    let (shared, m) = try store.match(cache, Array(ids.prefix(18)))
    #expect(try m == 18 && holds(shared, Array(ids.prefix(18))) && cache.usage.tokens == before)
    #expect(try living.length() == 20)
    #expect(try store.match(cache, []).matched == 0)
    #expect(try store.match(cache, [7]).matched == 0)
  }

  @Test func theLongestUnusedMakeRoom() throws {
    let place = try Workplace()
    let context = try makeContext()
    let cache = try Cache(context, Combination.small)
    let one = 3 * 4096  // 20 tokens: tables and two pages
    let store = try Store(context, place.folder.path, maxBytes: UInt64(3 * one))
    func ids(_ n: Int32) -> [Int32] { (0..<20).map { $0 + 1000 * n } }
    func known(_ n: Int32) throws -> Bool { try store.match(Cache(context, Combination.small), ids(n)).matched == 20 }
    for n in Int32(0)..<3 {
      try store.put(document(cache, ids(n)))
      usleep(20_000)  // the file system's clock
    }
    #expect(try known(0))  // used now
    usleep(20_000)
    try store.put(document(cache, ids(3)))
    let stats = try store.stats()
    #expect(stats.documents == 3 && stats.bytes == UInt64(3 * one) && stats.evicted == 1 && stats.stored == 4)
    #expect(try known(0) && !known(1) && known(2) && known(3))
    // Put again: nothing is written.
    try store.put(document(cache, ids(2)))
    #expect(try store.stats().stored == 4)
    // One that needs the room of two; and one that has none.
    try store.put(document(cache, (0..<60).map { 9000 + $0 }))
    #expect(try store.stats().documents == 2 && store.stats().bytes <= UInt64(3 * one))
    let (status, text) = refusedWith { try store.put(document(cache, (0..<200).map { $0 })) }
    #expect(status == .full && text.contains("max_bytes"), "\(text)")
    #expect(try store.stats().documents == 2)
  }

  private func refusedWith(_ body: () throws -> Void) -> (Status, String) {
    do {
      try body()
      return (.ok, "")
    } catch {
      return ((error as? TamisError)?.status ?? .internal, (error as? TamisError)?.message ?? "")
    }
  }

  @Test func modelsAndLayoutsLiveSideBySide() throws {
    let place = try Workplace()
    let context = try makeContext()
    let cache = try Cache(context, Combination.small)
    var options = Combination.small
    options.pageTokens = 32
    let other = try Cache(context, options)
    let store = try Store(context, place.folder.path, maxBytes: 0)
    let ids = (0..<50).map { Int32($0) }
    try store.put(document(cache, ids))
    try store.put(document(cache, Array(ids.prefix(40))), "model 2")
    try store.put(document(other, Array(ids.prefix(30))))
    for (options, fingerprint, expected) in [
      (cache.options, "model", 50), (cache.options, "model 2", 40), (other.options, "model", 30),
      (other.options, "model 2", 0), (cache.options, "", 0),
    ] {
      let (sequence, matched) = try store.match(Cache(context, options), ids, fingerprint)
      #expect(try matched == expected && holds(sequence, Array(ids.prefix(expected))))
    }
  }

  /// Removed by another process: a miss. Damaged: removed, and the next best is taken.
  @Test func goneAndDamagedFilesAreMisses() throws {
    let place = try Workplace()
    let context = try makeContext()
    let cache = try Cache(context, Combination.small)
    let store = try Store(context, place.folder.path, maxBytes: 0)
    let ids = (0..<60).map { Int32($0) }
    try store.put(document(cache, Array(ids.prefix(35))))
    try store.put(document(cache, ids))
    func files() -> [String] { place.names.filter { $0.hasSuffix(".tamis") } }
    func length(_ name: String) throws -> Int { try Data(contentsOf: place.folder.appendingPathComponent(name)).count }
    let longest = try #require(try files().max { try length($0) < length($1) })
    let path = place.folder.appendingPathComponent(longest)
    var bytes = try Data(contentsOf: path)
    bytes[bytes.count - 4000] ^= 1
    try bytes.write(to: path)
    let (sequence, matched) = try store.match(Cache(context, Combination.small), ids)
    #expect(try matched == 35 && holds(sequence, Array(ids.prefix(35))))
    #expect(try files().count == 1 && store.stats().damaged == 1)
    for name in files() { try FileManager.default.removeItem(at: place.folder.appendingPathComponent(name)) }
    #expect(try store.match(Cache(context, Combination.small), ids).matched == 0)
    #expect(try holds(sequence, Array(ids.prefix(35))))
    // Files of others in the folder are left alone; what only looks like ours takes room until room is needed.
    try Data("notes".utf8).write(to: place.folder.appendingPathComponent("notes.txt"))
    try Data("no cache file".utf8).write(to: place.folder.appendingPathComponent("x.tamis"))
    #expect(try store.stats().bytes == 13 && store.stats().documents == 0)
    let capped = try Store(context, place.folder.path, maxBytes: 5 * 4096)
    try capped.put(document(cache, ids))
    #expect(place.names.contains("notes.txt") && !place.names.contains("x.tamis"))
  }

  @Test func wrongDocumentsAreRefused() throws {
    let place = try Workplace()
    let context = try makeContext()
    let cache = try Cache(context, Combination.small)
    let store = try Store(context, place.folder.path, maxBytes: 0)
    let unknown = try TokenSequence.create(cache)
    try unknown.extend(nil, 5)
    #expect(status { try store.put(unknown) } == .argument)
    #expect(status { try store.put(unknown, length: 6) } == .argument)
    try store.put(unknown, length: 0)
    #expect(status { _ = try Store(context, place.file + "/a/b", maxBytes: 0) } == .io)
    try Data().write(to: URL(fileURLWithPath: place.file))
    #expect(status { _ = try Store(context, place.file, maxBytes: 0) } == .io)
  }

  @Test func everyAllocationMayFail() throws {
    let ids = (0..<40).map { Int32($0) }
    var (n, total, refusals) = (0, 1, 0)
    while n < total {
      n += 1
      let place = try Workplace()
      let allocator = Allocator()
      do {
        let context = try Context.create(allocator.options)
        let cache = try Cache(makeContext(), Combination.small)
        let sequence = try document(cache, ids)
        let target = try Cache(context, Combination.small)
        allocator.fail(n..<n + 1)
        func insist<Value>(_ body: () throws -> Value) throws -> Value {
          do { return try body() } catch let error as TamisError where error.status == .memory {
            refusals += 1
            return try body()
          }
        }
        let store = try insist { try Store(context, place.folder.path, maxBytes: 0) }
        try insist { try store.put(sequence) }
        let found = try insist { try store.match(target, ids) }
        #expect(try found.matched == 40 && holds(found.sequence, ids))
      }
      #expect(allocator.bytesHeld == 0)
      total = allocator.callCount
    }
    #expect(n > 5 && refusals > 1)
  }
}

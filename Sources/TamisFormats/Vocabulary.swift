// The tokens of a byte-level vocabulary and the merges that build them. Read-only once loaded.
// It refuses ids past `idLimit`, two tokens with one id, and merges of tokens that do not exist.

import TamisRuntime

struct Vocabulary: ~Copyable, Sendable {
  static let idLimit = 1 << 22

  private struct Entry: BitwiseCopyable {
    var start: UInt32 = 0
    var length: UInt32 = 0
    var exists = false
    var isAdded = false
    var isSpecial = false
  }
  private struct Merge: BitwiseCopyable {
    var pair: UInt64  // left id, right id; all ones: empty
    var rank: UInt32
    var result: Int32
  }
  private static let noPair = UInt64.max

  private var text: GrowableBuffer<UInt8>  // all contents, as the file writes them
  private var entries: GrowableBuffer<Entry>  // by id
  private var slots: GrowableBuffer<UInt32>  // hash table: id + 1
  private var used = 0
  private var merges: GrowableBuffer<Merge>  // hash table
  private var byteIDs: GrowableBuffer<Int32>  // by byte; -1: none
  private let seed: UInt64

  init(_ context: Context) {
    text = GrowableBuffer(context)
    entries = GrowableBuffer(context)
    slots = GrowableBuffer(context)
    merges = GrowableBuffer(context)
    byteIDs = GrowableBuffer(context)
    var hasher = Hasher()
    hasher.combine(0)
    seed = UInt64(bitPattern: Int64(hasher.finalize())) | 1
  }

  /// The highest id plus one.
  var count: Int { entries.count }

  // MARK: tokens

  func content(of id: Int32) -> UnsafeBufferPointer<UInt8>? {
    guard let entry = entries.element(at: Int(id)), entry.exists else { return nil }
    return UnsafeBufferPointer(rebasing: text.elements[Int(entry.start)..<Int(entry.start &+ entry.length)])
  }

  func isAdded(_ id: Int32) -> Bool { entries.element(at: Int(id))?.isAdded ?? false }
  func isSpecial(_ id: Int32) -> Bool { entries.element(at: Int(id))?.isSpecial ?? false }

  func id(of content: UnsafeBufferPointer<UInt8>) -> Int32? {
    guard slots.count > 0 else { return nil }
    var slot = hash(content) & (slots.count &- 1)
    while let taken = slots.element(at: slot), taken != 0 {
      let id = Int32(truncatingIfNeeded: taken &- 1)
      if let other = self.content(of: id), other.count == content.count, other.elementsEqual(content) { return id }
      slot = (slot &+ 1) & (slots.count &- 1)
    }
    return nil
  }

  func id(ofByte byte: UInt8) -> Int32 { byteIDs.element(at: Int(byte)) ?? -1 }

  /// Takes in a token; the same token under the same id may come twice.
  mutating func add(_ content: UnsafeBufferPointer<UInt8>, id: Int) throws(TamisError) {
    if let known = self.id(of: content) {
      guard Int(known) == id else {
        throw TamisError(.format, "tokenizer: token \(quoted(content)) has the ids \(known) and \(id)")
      }
      return
    }
    if id >= entries.count { try entries.append(repeating: Entry(), count: id &- entries.count &+ 1) }
    guard self.content(of: Int32(truncatingIfNeeded: id)) == nil else {
      throw TamisError(.format, "tokenizer: id \(id) is given to two tokens, one of them \(quoted(content))")
    }
    let start = text.count
    try text.append(contentsOf: content)
    entries.set(
      Entry(start: UInt32(truncatingIfNeeded: start), length: UInt32(truncatingIfNeeded: content.count), exists: true),
      at: id)
    try insert(id)
  }

  mutating func markAdded(_ id: Int, special: Bool) {
    guard var entry = entries.element(at: id) else { return }
    entry.isAdded = true
    entry.isSpecial = special
    entries.set(entry, at: id)
  }

  private func hash(_ content: UnsafeBufferPointer<UInt8>) -> Int {
    var hasher = Hasher()
    hasher.combine(bytes: UnsafeRawBufferPointer(content))
    return hasher.finalize()
  }

  private mutating func insert(_ id: Int) throws(TamisError) {
    used &+= 1
    if used &* 2 > slots.count {
      let size = max(1024, slots.count &* 2)
      slots.truncate(to: 0)
      try slots.append(repeating: 0, count: size)
      for other in 0..<entries.count where entries.element(at: other)?.exists ?? false { place(other) }
    } else {
      place(id)
    }
  }

  private mutating func place(_ id: Int) {
    guard let content = content(of: Int32(truncatingIfNeeded: id)) else { return }
    var slot = hash(content) & (slots.count &- 1)
    while let taken = slots.element(at: slot), taken != 0 { slot = (slot &+ 1) & (slots.count &- 1) }
    slots.set(UInt32(truncatingIfNeeded: id &+ 1), at: slot)
  }

  // MARK: merges

  /// Finds the tokens of the single bytes, once the vocabulary is complete.
  mutating func indexBytes() throws(TamisError) {
    var character = GrowableBuffer<UInt8>(text.context)
    for byte in UInt8.min...UInt8.max {
      character.truncate(to: 0)
      if let scalar = Unicode.Scalar(ByteAlphabet.character(of: byte)) { try UTF8Text.append(scalar, to: &character) }
      try byteIDs.append(id(of: character.elements) ?? -1)
    }
  }

  mutating func reserveMerges(_ count: Int) throws(TamisError) {
    var size = 16
    while size < count &* 2 { size &*= 2 }
    try merges.append(repeating: Merge(pair: Vocabulary.noPair, rank: 0, result: 0), count: size)
  }

  /// A pair that comes again keeps its later rank, as in the tokenizers library. No more than were reserved.
  mutating func addMerge(left: Int32, right: Int32, rank: Int, result: Int32) {
    let pair = Vocabulary.pair(left, right)
    var slot = mergeSlot(pair)
    while let taken = merges.element(at: slot), taken.pair != Vocabulary.noPair, taken.pair != pair {
      slot = (slot &+ 1) & (merges.count &- 1)
    }
    merges.set(Merge(pair: pair, rank: UInt32(truncatingIfNeeded: rank), result: result), at: slot)
  }

  @inline(__always)
  private static func pair(_ left: Int32, _ right: Int32) -> UInt64 {
    UInt64(UInt32(bitPattern: left)) << 32 | UInt64(UInt32(bitPattern: right))
  }

  @inline(__always)
  private func mergeSlot(_ pair: UInt64) -> Int {
    // Multiplicative hashing with a random odd factor: no file can choose colliding pairs.
    let mixed = (pair ^ pair >> 29) &* seed
    return Int(truncatingIfNeeded: (mixed ^ mixed >> 32) & UInt64(merges.count &- 1))
  }

  @inline(__always)
  func merge(_ left: Int32, _ right: Int32) -> (rank: UInt32, result: Int32)? {
    let pair = Vocabulary.pair(left, right)
    let table = merges.elements
    guard table.count > 0 else { return nil }
    var slot = mergeSlot(pair)
    while true {
      let merge = table[slot]
      if merge.pair == pair { return (merge.rank, merge.result) }
      if merge.pair == Vocabulary.noPair { return nil }
      slot = (slot &+ 1) & (table.count &- 1)
    }
  }
}

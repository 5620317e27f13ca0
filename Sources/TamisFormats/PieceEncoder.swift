// What one call of `encode` works with: the regex state, the merger, and a cache of pieces already met in this text.
// A cache entry points at the piece in the text and at its ids in the output, so that it copies neither.

import TamisRuntime

struct PieceEncoder: ~Copyable {
  private struct Entry: BitwiseCopyable {
    var piece: UnsafePointer<UInt8>?
    var length: UInt32 = 0
    var idCount: UInt32 = 0
    var firstID = 0  // index in the output
  }
  /// Longer pieces seldom come again.
  private static let cachedLength = 64

  var matcher: RegexMatcher
  /// False while pieces do not stay in place.
  var isCaching = true
  private var merger: PairMerger
  private var cache: GrowableBuffer<Entry>
  private var written: GrowableBuffer<UInt8>  // a piece in the byte alphabet

  /// `cached`: every piece stays in place until the end of the call.
  init(length: Int, cached: Bool, _ context: Context) throws(TamisError) {
    var cache = GrowableBuffer<Entry>(context)
    if cached, length >= 256 {
      var size = 64
      while size < min(length / 4, 16384) { size &*= 2 }
      try cache.append(repeating: Entry(), count: size)
    }
    let matcher = try RegexMatcher(length: length, context)
    self.cache = cache
    self.matcher = matcher
    merger = PairMerger(context)
    written = GrowableBuffer(context)
  }

  /// Appends the ids of one piece.
  mutating func encode(
    _ piece: UnsafeBufferPointer<UInt8>, _ vocabulary: borrowing Vocabulary, ignoresMerges: Bool,
    into ids: inout GrowableBuffer<Int32>
  ) throws(TamisError) {
    guard piece.count > 0 else { return }
    guard isCaching, cache.count > 0, piece.count <= PieceEncoder.cachedLength else {
      return try merge(piece, vocabulary, ignoresMerges: ignoresMerges, into: &ids)
    }
    let slot = hash(piece) & (cache.count &- 1)
    if let entry = cache.element(at: slot), Int(entry.length) == piece.count,
      UnsafeBufferPointer(start: entry.piece, count: Int(entry.length)).elementsEqual(piece)
    {
      for index in 0..<Int(entry.idCount) {
        if let id = ids.element(at: entry.firstID &+ index) { try ids.append(id) }
      }
      return
    }
    let firstID = ids.count
    try merge(piece, vocabulary, ignoresMerges: ignoresMerges, into: &ids)
    cache.set(
      Entry(
        piece: piece.baseAddress, length: UInt32(truncatingIfNeeded: piece.count),
        idCount: UInt32(truncatingIfNeeded: ids.count &- firstID), firstID: firstID), at: slot)
  }

  private mutating func merge(
    _ piece: UnsafeBufferPointer<UInt8>, _ vocabulary: borrowing Vocabulary, ignoresMerges: Bool,
    into ids: inout GrowableBuffer<Int32>
  ) throws(TamisError) {
    if ignoresMerges, let id = try wholePiece(piece, vocabulary) { return try ids.append(id) }
    try merger.encode(piece, with: vocabulary, into: &ids)
  }

  /// The token that is the whole piece.
  private mutating func wholePiece(
    _ piece: UnsafeBufferPointer<UInt8>, _ vocabulary: borrowing Vocabulary
  ) throws(TamisError) -> Int32? {
    written.truncate(to: 0)
    for byte in piece {
      let character = ByteAlphabet.character(of: byte)
      if character < 0x80 {
        try written.append(UInt8(truncatingIfNeeded: character))
      } else {
        try written.append(UInt8(truncatingIfNeeded: 0xC0 | character >> 6))
        try written.append(UInt8(truncatingIfNeeded: 0x80 | character & 0x3F))
      }
    }
    return vocabulary.id(of: written.elements)
  }

  /// FNV-1a: a collision only costs a merge.
  private func hash(_ piece: UnsafeBufferPointer<UInt8>) -> Int {
    var hash: UInt64 = 0xCBF2_9CE4_8422_2325
    for byte in piece { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01B3 }
    return Int(truncatingIfNeeded: (hash ^ hash >> 32) & 0x7FFF_FFFF)
  }
}

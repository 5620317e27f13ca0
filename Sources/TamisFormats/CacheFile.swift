// A cache file, version 1 (docs/formats.md): the pages of one sequence with its token ids, the fingerprint of the model
// that made them and a checksum for every part. Owns the bytes' order and their checks; what a page holds is the
// cache's business. It refuses a file whose header, table, length, page shape or model is not exactly what is
// expected, before anything of its pages is looked at.
//
// Numbers are little-endian, as on every machine that this library runs on, and pages begin at multiples of 4096
// bytes, so that a mapped page can be used where it lies.

package import TamisRuntime

/// What decides the bytes of a page, in the order of the file.
package struct CacheFileShape: Equatable, BitwiseCopyable, Sendable {
  package var layers: Int32 = 0
  package var kvHeads: Int32 = 0
  package var keyDim: Int32 = 0
  package var valueDim: Int32 = 0
  package var ownValues: Int32 = 0
  package var indexDim: Int32 = 0
  package var kvDType: Int32 = 0
  /// -1: no index keys.
  package var indexDType: Int32 = 0
  package var pageTokens: Int32 = 0

  package init() {}

  /// The first number in which another shape differs, for an error's text.
  func difference(_ expected: CacheFileShape) -> String {
    let names = [
      "layers", "kv_heads", "key_dim", "value_dim", "own_values", "index_dim", "kv_dtype", "index_dtype", "page_tokens",
    ]
    for ((name, ours), theirs) in zip(zip(names, numbers), expected.numbers) where ours != theirs {
      return "\(name) is \(ours), the cache has \(theirs)"
    }
    return "the same shape"
  }

  private var numbers: [Int32] {
    [layers, kvHeads, keyDim, valueDim, ownValues, indexDim, kvDType, indexDType, pageTokens]
  }
}

/// The first 128 bytes, and where everything else is.
package struct CacheFileHeader: Sendable {
  package static let bytes = 128
  package static let largestFingerprint = 4096
  static let magic: UInt64 = 0x5145_5353_494D_4154  // "TAMISSEQ"
  static let version: UInt32 = 1
  private static let alignment = 4096

  package let shape: CacheFileShape
  package let tokens: Int
  package let pageBytes: Int
  package let fingerprintBytes: Int
  /// Pages, and bytes from one to the next.
  package let pages: Int
  package let pageStride: Int
  package let tokensOffset: Int
  let sumsOffset: Int
  package let pagesOffset: Int
  package let fileBytes: Int

  package init(
    shape: CacheFileShape, tokens: Int, pageBytes: Int, fingerprintBytes: Int
  ) throws(TamisError) {
    guard shape.pageTokens > 0, pageBytes > 0, tokens >= 0, tokens <= Int(Int32.max), fingerprintBytes >= 0 else {
      throw TamisError(.format, "impossible sizes")
    }
    guard fingerprintBytes <= Self.largestFingerprint else {
      throw TamisError(
        .argument, "fingerprint: \(fingerprintBytes) bytes, expected at most \(Self.largestFingerprint)")
    }
    self.shape = shape
    self.tokens = tokens
    self.pageBytes = pageBytes
    self.fingerprintBytes = fingerprintBytes
    let pageTokens = Int(shape.pageTokens)
    pages = tokens / pageTokens &+ (tokens % pageTokens == 0 ? 0 : 1)
    pageStride = try Size.roundUp(pageBytes, to: Self.alignment)
    tokensOffset = Self.bytes &+ (fingerprintBytes &+ 7) / 8 &* 8
    sumsOffset = tokensOffset &+ (tokens &* 4 &+ 7) / 8 &* 8
    pagesOffset = try Size.roundUp(sumsOffset &+ pages &* 8 &+ 8, to: Self.alignment)
    fileBytes = try Size.sum(pagesOffset, Size.product(pages, pageStride))
  }

  /// Where the table's own checksum is: its last 8 bytes.
  var tableSumOffset: Int { pagesOffset &- 8 }

  package func pageOffset(_ page: Int) -> Int { pagesOffset &+ page &* pageStride }

  // MARK: Bytes

  /// Into the first 128 bytes of `target`, which are zeros.
  func store(_ target: UnsafeMutableRawPointer) {
    target.storeBytes(of: Self.magic.littleEndian, as: UInt64.self)
    target.storeBytes(of: Self.version.littleEndian, toByteOffset: 8, as: UInt32.self)
    target.storeBytes(of: UInt32(truncatingIfNeeded: fingerprintBytes).littleEndian, toByteOffset: 12, as: UInt32.self)
    target.storeBytes(of: UInt64(truncatingIfNeeded: tokens).littleEndian, toByteOffset: 16, as: UInt64.self)
    target.storeBytes(of: UInt64(truncatingIfNeeded: pageBytes).littleEndian, toByteOffset: 24, as: UInt64.self)
    target.storeBytes(of: UInt64(truncatingIfNeeded: fileBytes).littleEndian, toByteOffset: 32, as: UInt64.self)
    target.storeBytes(of: shape, toByteOffset: 40, as: CacheFileShape.self)
    let sum = XXH64.of(UnsafeRawBufferPointer(start: target, count: 120))
    target.storeBytes(of: sum.littleEndian, toByteOffset: 120, as: UInt64.self)
  }

  /// What the first 128 bytes say, in a file of `length` bytes.
  static func parse(_ bytes: UnsafeRawBufferPointer, length: Int) throws(TamisError) -> CacheFileHeader {
    guard let base = bytes.baseAddress, bytes.count >= Self.bytes, word(base, 0) == magic else {
      throw TamisError(.format, "not a cache file")
    }
    guard word(base, 120) == XXH64.of(UnsafeRawBufferPointer(start: base, count: 120)) else {
      throw TamisError(.format, "damaged: the header's checksum is wrong")
    }
    let version = UInt32(littleEndian: base.load(fromByteOffset: 8, as: UInt32.self))
    guard version == Self.version else {
      throw TamisError(.unsupported, "a cache file of version \(version), this library reads \(Self.version)")
    }
    for at in 76..<120 where base.load(fromByteOffset: at, as: UInt8.self) != 0 {
      throw TamisError(.unsupported, "the header has a field that this library does not know")
    }
    guard let header = stated(base), word(base, 32) == UInt64(header.fileBytes) else {
      throw TamisError(.format, "impossible sizes")
    }
    guard length == header.fileBytes else {
      throw TamisError(.format, "\(length) bytes, its header says \(header.fileBytes): cut short or changed")
    }
    return header
  }

  private static func stated(_ base: UnsafeRawPointer) -> CacheFileHeader? {
    try? CacheFileHeader(
      shape: base.load(fromByteOffset: 40, as: CacheFileShape.self), tokens: Int(clamping: word(base, 16)),
      pageBytes: Int(clamping: word(base, 24)),
      fingerprintBytes: Int(UInt32(littleEndian: base.load(fromByteOffset: 12, as: UInt32.self))))
  }

  static func word(_ base: UnsafeRawPointer, _ offset: Int) -> UInt64 {
    UInt64(littleEndian: base.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
  }
}

/// An open file whose header and table are in order. Nothing is mapped yet.
package struct CacheFile: ~Copyable {
  package let header: CacheFileHeader
  private let file: OpenFile
  /// Everything before the pages.
  private let front: GrowableBuffer<UInt8>

  package init(_ path: String, _ context: Context) throws(TamisError) {
    let file = try OpenFile(path)
    let header = try Self.naming(path) { () throws(TamisError) in try Self.header(file, context) }
    let front = try Self.naming(path) { () throws(TamisError) in try Self.front(file, header, context) }
    self.file = file
    self.header = header
    self.front = front
  }

  /// Errors about contents say which file (those of the operating system do already).
  private static func naming<Result: ~Copyable>(
    _ path: String, _ body: () throws(TamisError) -> Result
  ) throws(TamisError) -> Result {
    do {
      return try body()
    } catch {
      throw error.status == .io ? error : TamisError(error.status, "\(path): \(error.message)")
    }
  }

  private static func header(_ file: borrowing OpenFile, _ context: Context) throws(TamisError) -> CacheFileHeader {
    guard file.length >= CacheFileHeader.bytes else { throw TamisError(.format, "not a cache file: \(file.length) bytes") }
    let bytes = try file.read(from: 0, count: CacheFileHeader.bytes, context)
    return try CacheFileHeader.parse(UnsafeRawBufferPointer(bytes.elements), length: file.length)
  }

  private static func front(
    _ file: borrowing OpenFile, _ header: CacheFileHeader, _ context: Context
  ) throws(TamisError) -> GrowableBuffer<UInt8> {
    let front = try file.read(from: 0, count: header.pagesOffset, context)
    guard let base = UnsafeRawPointer(front.elements.baseAddress) else { return front }
    let table = UnsafeRawBufferPointer(
      start: base + CacheFileHeader.bytes, count: header.tableSumOffset &- CacheFileHeader.bytes)
    guard CacheFileHeader.word(base, header.tableSumOffset) == XXH64.of(table) else {
      throw TamisError(.format, "damaged: the table's checksum is wrong")
    }
    return front
  }

  /// Refuses a file of another layout (`pageBytes`: what the shape means for a page here) or model.
  package func require(
    _ shape: CacheFileShape, pageBytes: Int, fingerprint: UnsafeRawBufferPointer
  ) throws(TamisError) {
    guard header.shape == shape else {
      throw TamisError(.format, "\(file.path): another layout: \(header.shape.difference(shape))")
    }
    guard header.pageBytes == pageBytes else {
      throw TamisError(
        .format, "\(file.path): another layout: pages of \(header.pageBytes) bytes, not \(pageBytes)")
    }
    guard self.fingerprint.elementsEqual(fingerprint) else {
      throw TamisError(.format, "\(file.path): made by another model: its fingerprint is not the one expected")
    }
  }

  /// Valid as long as this file is, as `tokens`.
  package var fingerprint: UnsafeRawBufferPointer {
    UnsafeRawBufferPointer(
      start: UnsafeRawPointer(front.elements.baseAddress).map { $0 + CacheFileHeader.bytes },
      count: header.fingerprintBytes)
  }

  /// [header.tokens]; -1 where unknown. Valid as long as this file is.
  package var tokens: UnsafePointer<Int32>? {
    UnsafeRawPointer(front.elements.baseAddress).map {
      ($0 + header.tokensOffset).assumingMemoryBound(to: Int32.self)
    }
  }

  package func checksum(page: Int) -> UInt64 {
    guard page >= 0, page < header.pages, let base = front.elements.baseAddress else { return 0 }
    return CacheFileHeader.word(base, header.sumsOffset &+ page &* 8)
  }

  /// The whole file, to be read where it lies.
  package func map() throws(TamisError) -> MappedFile { try file.map() }

  /// Bytes first ..< first + target.count of a page. Reading does not touch a mapping: a file that was cut short
  /// meanwhile is an error, not a signal.
  package func read(page: Int, first: Int, into target: UnsafeMutableRawBufferPointer) throws(TamisError) {
    try file.read(from: header.pageOffset(page) &+ first, into: target)
  }

  package func damaged(page: Int) -> TamisError {
    TamisError(.format, "\(file.path): damaged: the checksum of page \(page) is wrong")
  }
}

/// Writes one, all or nothing: every page in order, then commit.
package struct CacheFileWriter: ~Copyable {
  private let header: CacheFileHeader
  private var file: AtomicFile
  private var front: GrowableBuffer<UInt8>
  private var written = 0

  /// tokens [header.tokens].
  package init(
    _ path: String, _ header: CacheFileHeader, fingerprint: UnsafeRawBufferPointer, tokens: UnsafePointer<Int32>?,
    _ context: Context
  ) throws(TamisError) {
    var front = GrowableBuffer<UInt8>(context)
    try front.append(repeating: 0, count: header.pagesOffset)
    if let base = UnsafeMutableRawPointer(front.mutableElements.baseAddress) {
      header.store(base)
      if let source = fingerprint.baseAddress {
        (base + CacheFileHeader.bytes).copyMemory(from: source, byteCount: header.fingerprintBytes)
      }
      if let tokens { (base + header.tokensOffset).copyMemory(from: tokens, byteCount: header.tokens &* 4) }
    }
    let file = try AtomicFile(path)
    try file.reserve(header.fileBytes)
    self.header = header
    self.front = front
    self.file = file
  }

  /// The next pages, sums.count of them at distances of header.pageStride.
  package mutating func write(
    _ pages: UnsafeRawPointer, sums: UnsafeBufferPointer<UInt64>
  ) throws(TamisError) {
    guard let base = UnsafeMutableRawPointer(front.mutableElements.baseAddress), sums.count <= header.pages &- written
    else { throw TamisError(.internal, "more pages than the header says") }
    try file.write(
      UnsafeRawBufferPointer(start: pages, count: sums.count &* header.pageStride), at: header.pageOffset(written))
    for sum in sums {
      base.storeBytes(of: sum.littleEndian, toByteOffset: header.sumsOffset &+ written &* 8, as: UInt64.self)
      written &+= 1
    }
  }

  package mutating func commit() throws(TamisError) {
    guard let base = UnsafeMutableRawPointer(front.mutableElements.baseAddress), written == header.pages
    else { throw TamisError(.internal, "fewer pages than the header says") }
    let table = UnsafeRawBufferPointer(
      start: base + CacheFileHeader.bytes, count: header.tableSumOffset &- CacheFileHeader.bytes)
    base.storeBytes(of: XXH64.of(table).littleEndian, toByteOffset: header.tableSumOffset, as: UInt64.self)
    try file.write(UnsafeRawBufferPointer(front.elements), at: 0)
    try file.commit()
  }
}

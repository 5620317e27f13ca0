// A libFuzzer target for the readers of files: the first byte of an input chooses JSON, a cache file, safetensors,
// tokenizer.json or text to encode, also in normal form, the rest is the file. A reader may refuse; the sanitizer and the traps judge the rest. Text must
// always encode and decode. It is for long runs by hand (README.md); Tests/FormatsTests damages files in a fixed way
// on every run of the tests.

import Glibc
import TamisFormats
import TamisRuntime

private func buffer(_ bytes: UnsafeRawBufferPointer) throws(TamisError) -> GrowableBuffer<UInt8> {
  var held = GrowableBuffer<UInt8>(.unmetered)
  for byte in bytes { try held.append(byte) }
  return held
}

/// Reads every value as everything it could be.
private func visit(_ value: JSONValue) {
  _ = try? value.string()
  _ = try? value.double()
  _ = try? value.integer()
  _ = value.member("a")
  for element in value.elements { visit(element) }
  for member in value.members {
    visit(member.key)
    visit(member.value)
  }
}

private func readJSON(_ bytes: UnsafeRawBufferPointer) {
  guard let document = try? JSONDocument(text: buffer(bytes), name: "input") else { return }
  visit(document.root)
}

private func put(_ word: UInt64, _ bytes: inout [UInt8], at place: Int) {
  for i in 0..<8 { bytes[place + i] = UInt8(truncatingIfNeeded: word >> (8 * UInt64(i))) }
}

private func seal(_ bytes: inout [UInt8], _ part: Range<Int>, at place: Int) {
  put(bytes.withUnsafeBytes { XXH64.of(UnsafeRawBufferPointer(rebasing: $0[part])) }, &bytes, at: place)
}

/// A cache file as only a hostile writer makes it: checksums agree with what they cover, and for an odd first byte the
/// lengths agree with each other too. What is stated is then judged on its own.
private func readCacheFile(_ bytes: UnsafeRawBufferPointer) {
  guard let way = bytes.first else { return }
  var sealed = Array(bytes.dropFirst())
  if sealed.count >= CacheFileHeader.bytes {
    let header = sealed.withUnsafeBytes { bytes in
      try? CacheFileHeader(
        shape: bytes.loadUnaligned(fromByteOffset: 40, as: CacheFileShape.self),
        tokens: Int(bytes.loadUnaligned(fromByteOffset: 16, as: UInt32.self)),
        pageBytes: Int(bytes.loadUnaligned(fromByteOffset: 24, as: UInt32.self)),
        fingerprintBytes: Int(bytes.loadUnaligned(fromByteOffset: 12, as: UInt32.self)))
    }
    if let header, way & 1 == 1, header.fileBytes <= 1 << 20 {
      sealed += Array(repeating: 0, count: max(0, header.fileBytes - sealed.count))
      sealed.removeLast(sealed.count - header.fileBytes)
      for i in 0..<4 { (sealed[20 + i], sealed[28 + i]) = (0, 0) }
      put(UInt64(header.fileBytes), &sealed, at: 32)
    }
    if let header, header.pagesOffset <= sealed.count {
      seal(&sealed, CacheFileHeader.bytes..<header.pagesOffset - 8, at: header.pagesOffset - 8)
    }
    seal(&sealed, 0..<120, at: 120)
  }
  let path = "/dev/shm/tamis-fuzz-cache-\(getpid())"
  let descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
  guard descriptor >= 0, sealed.withUnsafeBytes({ write(descriptor, $0.baseAddress, $0.count) }) == sealed.count else {
    abort()
  }
  close(descriptor)
  defer { unlink(path) }
  guard let file = try? CacheFile(path, .unmetered) else { return }
  guard file.header.fileBytes == sealed.count, file.fingerprint.count == file.header.fingerprintBytes else { abort() }
  let page = UnsafeMutableRawBufferPointer.allocate(byteCount: file.header.pageBytes, alignment: 64)
  defer { page.deallocate() }
  for number in 0..<file.header.pages {
    _ = file.checksum(page: number)
    try? file.read(page: number, first: 0, into: page)
  }
  _ = try? file.map()
  if let tokens = file.tokens { for i in 0..<file.header.tokens { _ = tokens[i] } }
}

/// Reads every byte of every tensor. The sum is returned so that reading is not optimised away.
private func readCheckpoint(_ bytes: UnsafeRawBufferPointer) -> UInt8 {
  let path = "/dev/shm/tamis-fuzz-\(getpid())"
  let descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
  guard descriptor >= 0, write(descriptor, bytes.baseAddress, bytes.count) == bytes.count else { abort() }
  close(descriptor)
  defer { unlink(path) }
  var sum: UInt8 = 0
  guard let checkpoint = try? Checkpoint(path: path) else { return sum }
  for index in 0..<checkpoint.count {
    guard let tensor = checkpoint.tensor(at: index) else { abort() }
    for byte in tensor.bytes { sum ^= byte }
  }
  return sum
}

/// The file, should it be a tokenizer, encodes itself.
private func readTokenizer(_ bytes: UnsafeRawBufferPointer) {
  guard let document = try? JSONDocument(text: buffer(bytes), name: "input"), let tokenizer = try? Tokenizer(document)
  else { return }
  var ids = GrowableBuffer<Int32>(.unmetered)
  var text = GrowableBuffer<UInt8>(.unmetered)
  guard (try? tokenizer.encode(bytes, into: &ids)) != nil else { return }
  try? tokenizer.decode(ids.elements, skipsSpecial: true, into: &text)
}

/// Of the repository's root, where the target is started.
nonisolated(unsafe) private let qwen = try? Tokenizer(path: "Tests/FormatsTests/Vectors/qwen.json")
nonisolated(unsafe) private let normalizing = try? Tokenizer(path: "Tests/FormatsTests/Vectors/forms.json")

private func encodeText(_ bytes: UnsafeRawBufferPointer, _ tokenizer: Tokenizer?) {
  guard let tokenizer else { abort() }
  var ids = GrowableBuffer<Int32>(.unmetered)
  var text = GrowableBuffer<UInt8>(.unmetered)
  do {
    try tokenizer.encode(bytes, Tokenizer.EncodingOptions(treatsSpecialAsText: bytes.count & 1 == 0), into: &ids)
    try tokenizer.decode(ids.elements, skipsSpecial: false, into: &text)
  } catch {
    abort()
  }
}

nonisolated(unsafe) private var lastSum: UInt8 = 0

@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzOneInput(_ data: UnsafePointer<UInt8>?, _ size: Int) -> CInt {
  let input = UnsafeRawBufferPointer(start: data, count: size)
  guard let kind = input.first else { return 0 }
  let file = UnsafeRawBufferPointer(rebasing: input[1...])
  switch kind {
  case UInt8(ascii: "j"): readJSON(file)
  case UInt8(ascii: "c"): readCacheFile(file)
  case UInt8(ascii: "s"): lastSum = readCheckpoint(file)
  case UInt8(ascii: "t"): readTokenizer(file)
  case UInt8(ascii: "e"): encodeText(file, qwen)
  case UInt8(ascii: "n"): encodeText(file, normalizing)
  default: break
  }
  return 0
}

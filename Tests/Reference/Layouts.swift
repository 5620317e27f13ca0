// The two byte layouts that DeepSeek-V3.2 caches have in public engines, so that caches written elsewhere can
// be read: FlashMLA's 656-byte token and the block-planar page of index keys. Numbers are little endian.
// It refuses any other layout, and it never repairs a scale: every Float scale is legal.

/// One token of the FlashMLA FP8 cache, 656 bytes:
///
///     [0, 512)    512 E4M3 codes of the latent
///     [512, 528)  4 Float scales; scale i belongs to dimensions 128 i ..< 128 (i + 1)
///     [528, 656)  64 bfloat16 rotary dimensions, not scaled
///
/// Gives the 576 numbers of the key: latent first, rotary part behind it. The value is the first 512.
public func decodeFlashMLAToken(_ bytes: [UInt8]) -> [Double] {
  precondition(bytes.count == 656, "a token has 656 bytes")
  let latent = dequantizeE4M3(Array(bytes[0..<512]), scales: floats(bytes[512..<528]), block: 128)
  let rotary = stride(from: 528, to: 656, by: 2).map { decodeBF16(UInt16(bytes[$0]) | UInt16(bytes[$0 + 1]) << 8) }
  return latent + rotary
}

/// The inverse: `key` has 576 numbers. FlashMLA rounds its scales up to powers of two, vLLM does not.
public func encodeFlashMLAToken(_ key: [Double], powerOfTwo: Bool) -> [UInt8] {
  precondition(key.count == 576, "a key has 576 numbers")
  let latent = quantizeE4M3(Array(key[0..<512]), block: 128, powerOfTwo: powerOfTwo)
  let rotary = key[512..<576].map(encodeBF16).flatMap { [UInt8($0 & 0xff), UInt8($0 >> 8)] }
  return latent.codes + bytes(ofFloats: latent.scales) + rotary
}

/// One page of the FP8 index-key cache, for `tokens` keys of `dim` numbers (DeepGEMM, vLLM: 64 of 128):
///
///     [0, tokens * dim)                E4M3 codes, token after token
///     [tokens * dim, + tokens * 4)     Float scales, one for each token
///
/// The bytes are planar in the page, not interleaved per token, although the tensor is often declared as
/// [pages, 64, 1, 132]. Gives the codes and scales of the keys: [tokens, dim] and [tokens].
public func decodeIndexPage(_ page: [UInt8], tokens: Int = 64, dim: Int = 128) -> Quantized<UInt8> {
  precondition(page.count == tokens * (dim + 4), "a page has dim + 4 bytes for each token")
  return Quantized(codes: Array(page[0..<tokens * dim]), scales: floats(page[(tokens * dim)...]))
}

/// The inverse of `decodeIndexPage`.
public func encodeIndexPage(_ keys: Quantized<UInt8>) -> [UInt8] {
  keys.codes + bytes(ofFloats: keys.scales)
}

private func floats(_ bytes: ArraySlice<UInt8>) -> [Double] {
  stride(from: bytes.startIndex, to: bytes.endIndex, by: 4).map { at in
    let bits = (0..<4).reduce(UInt32(0)) { $0 | UInt32(bytes[at + $1]) << UInt32(8 * $1) }
    return Double(Float(bitPattern: bits))
  }
}

private func bytes(ofFloats values: [Double]) -> [UInt8] {
  values.flatMap { value in
    let bits = Float(value).bitPattern
    return (0..<4).map { UInt8(truncatingIfNeeded: bits >> UInt32(8 * $0)) }
  }
}

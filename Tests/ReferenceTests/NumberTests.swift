// Number formats, quantisation, the Hadamard rotation and byte layouts of the reference against golden vectors.

import TamisReference
import Testing

struct NumberTests {
  let vectors: Vectors
  init() throws { vectors = try Vectors() }

  @Test func everyE4M3CodeHasItsValue() throws {
    let values = (0...255).map { decodeE4M3(UInt8($0)) }
    #expect(largestDifference(values, try vectors.numbers("e4m3.values")) == 0)
    #expect(values[0x80].sign == .minus)
    for code in 0...255 where code & 0x7f != 0x7f { #expect(encodeE4M3(values[code]) == UInt8(code)) }
  }

  @Test func e4m3RoundsToEvenAndSaturates() throws {
    let x = try vectors.numbers("e4m3_encode.x")
    let codes = try vectors.bytes("e4m3_encode.codes")
    #expect(x.map(encodeE4M3) == codes)
  }

  @Test func bf16AndF16RoundToEven() throws {
    #expect(try vectors.numbers("bf16_encode.x").map(encodeBF16) == vectors.halves("bf16_encode.bits"))
    #expect(try vectors.numbers("f16_encode.x").map(encodeF16) == vectors.halves("f16_encode.bits"))
    #expect(encodeBF16(.nan) == 0x7fc0)
    #expect(encodeF16(.nan) == 0x7e00)
  }

  @Test func everyBF16AndF16PatternSurvivesARoundTrip() {
    for bits in UInt16.min...UInt16.max {
      if !decodeBF16(bits).isNaN { #expect(encodeBF16(decodeBF16(bits)) == bits) }
      if !decodeF16(bits).isNaN { #expect(encodeF16(decodeF16(bits)) == bits) }
    }
    #expect(decodeF16(0x3c01) == 1 + 1.0 / 1024)
    #expect(decodeF16(0x0001) == 0x1p-24)
    #expect(decodeF16(0xfc00) == -.infinity)
    #expect(decodeF16(0x7c01).isNaN)
  }

  @Test func e4m3QuantisationMatches() throws {
    let x = try vectors.numbers("quantize.x")
    for name in vectors.names("quantize_e4m3") {
      let parameters = try vectors.parameters(name)
      let block = try #require(parameters.block)
      let result = quantizeE4M3(x, block: block, row: 128, powerOfTwo: try #require(parameters.powerOfTwo as Bool?))
      #expect(result.codes == (try vectors.bytes("\(name).codes")), "\(name)")
      #expect(result.scales == (try vectors.numbers("\(name).scales")), "\(name)")
    }
  }

  @Test func int8QuantisationMatches() throws {
    let x = try vectors.numbers("quantize.x")
    for name in vectors.names("quantize_i8") {
      let result = quantizeINT8(x, block: try #require(vectors.parameters(name).block), row: 128)
      #expect(result.codes.map(Int.init) == (try vectors.integers("\(name).codes")), "\(name)")
      #expect(result.scales == (try vectors.numbers("\(name).scales")), "\(name)")
    }
  }

  @Test func aPowerOfTwoScaleIsNeverTooSmall() {
    #expect(e4m3Scale(largest: 448, powerOfTwo: true) == 1)
    #expect(e4m3Scale(largest: 448.00003, powerOfTwo: true) == 2)
    #expect(e4m3Scale(largest: 447.99997, powerOfTwo: true) == 1)
    #expect(e4m3Scale(largest: 0, powerOfTwo: false) == Double(Float(1e-4) / 448))
  }

  @Test func dequantisationRestoresWithinHalfAStep() {
    var random = SplitMix64(seed: 11)
    let x = random.normals(512)
    let int8 = quantizeINT8(x, block: 128)
    let fp8 = quantizeE4M3(x, block: 128, powerOfTwo: true)
    let fromINT8 = dequantizeINT8(int8.codes, scales: int8.scales, block: 128)
    let fromFP8 = dequantizeE4M3(fp8.codes, scales: fp8.scales, block: 128)
    for i in x.indices {
      #expect((fromINT8[i] - x[i]).magnitude <= int8.scales[i / 128] * 0.5000001)
      // 3 mantissa bits: half a step is 1/16 of the value; subnormal steps are 2^-9 of the scale.
      #expect((fromFP8[i] - x[i]).magnitude <= max(x[i].magnitude / 16, fp8.scales[i / 128] * 0x1p-10))
    }
  }

  @Test func aShortLastBlockHasItsOwnScale() {
    let x: [Double] = [1, 2, 127, 254, -127, 0, 0, 0, 508, 0]
    let result = quantizeINT8(x, block: 3, row: 5)
    #expect(result.scales == [1, 2, 1, 4])
    #expect(result.codes == [1, 2, 127, 127, -64, 0, 0, 0, 127, 0])
    #expect(
      dequantizeINT8(result.codes, scales: result.scales, block: 3, row: 5) == [1, 2, 127, 254, -128, 0, 0, 0, 508, 0])
  }

  @Test func hadamardMatches() throws {
    for name in vectors.names("hadamard") {
      let x = try vectors.numbers("\(name).x")
      let y = rotateHadamard(x, length: try #require(vectors.parameters(name).n))
      #expect(largestDifference(y, try vectors.numbers("\(name).y")) < 1e-14, "\(name)")
    }
  }

  @Test func flashMLATokensDecode() throws {
    let bytes = try vectors.bytes("flashmla_token.bytes")
    let keys = stride(from: 0, to: bytes.count, by: 656).flatMap { decodeFlashMLAToken(Array(bytes[$0..<$0 + 656])) }
    #expect(keys == (try vectors.numbers("flashmla_token.keys")))
  }

  @Test func flashMLATokensEncode() {
    var random = SplitMix64(seed: 12)
    let key = random.normals(576)
    for powerOfTwo in [false, true] {
      let latent = quantizeE4M3(Array(key[..<512]), block: 128, powerOfTwo: powerOfTwo)
      let expected =
        dequantizeE4M3(latent.codes, scales: latent.scales, block: 128) + key[512...].map(roundedToBF16)
      #expect(decodeFlashMLAToken(encodeFlashMLAToken(key, powerOfTwo: powerOfTwo)) == expected)
    }
  }

  @Test func anIndexPageIsPlanar() throws {
    let page = try vectors.bytes("index_page.bytes")
    let decoded = decodeIndexPage(page)
    #expect(decoded.scales == (try vectors.numbers("index_page.scales")))
    let keys = dequantizeE4M3(decoded.codes, scales: decoded.scales, block: 128)
    #expect(keys == (try vectors.numbers("index_page.keys")))
    #expect(encodeIndexPage(decoded) == page)
    // Read as 132 interleaved bytes per token, the second token would begin with the wrong codes.
    #expect(Array(page[132..<132 + 128]) != Array(decoded.codes[128..<256]))
  }
}

// Number formats, 8-bit quantisers and the rotation, in every table this machine can run. Widening is checked on every
// code there is, narrowing on every number halfway between two neighbouring codes and on the floats beside it, against
// the Double arithmetic of the reference. At the end the tables are held against each other, bit for bit.

import TamisKernels
import TamisReference
import Testing

private typealias Table = UnsafePointer<tk_table>

private func usableTables() -> [Table] {
  var tables: [Table] = []
  while let name = tk_usable(Int32(tables.count)), let table = tk_choose(name) { tables.append(table) }
  return tables
}

private let lengths = [1, 2, 7, 8, 9, 15, 16, 17, 100, 128]

/// Equal as numbers and in the sign of zero; a NaN equals any NaN of the same sign.
private func same(_ x: Float, _ y: Double) -> Bool {
  x.isNaN || y.isNaN ? x.isNaN && y.isNaN : Double(x) == y && x.sign == y.sign
}

/// Every boundary of rounding between the codes of a format: the midpoints of neighbours, the floats just below and
/// above, the codes themselves; both signs. `values` are the format's numbers from zero up.
private func boundaries(_ values: [Double]) -> [Float] {
  var samples: [Float] = [0, .leastNonzeroMagnitude, .leastNormalMagnitude, .greatestFiniteMagnitude, .infinity, .nan]
  for (low, high) in zip(values, values.dropFirst()) {
    let middle = Float((low + high) / 2)
    samples += [Float(low), middle.nextDown, middle, middle.nextUp]
  }
  let last = Float(values[values.count - 1])
  samples += [last, last.nextUp, last * 1.001, last * 1.04, last * 1.07, last * 1.2, last * 2]
  return samples + samples.map { -$0 }
}

@Suite struct NumbersKernelTests {
  @Test func halfWidensExactly() {
    let codes = (0...65535).map { UInt16($0) }
    for table in usableTables() {
      var values = Array(repeating: Float(0), count: codes.count)
      table.pointee.f32_from_f16(codes, Int64(codes.count), &values)
      #expect(codes.indices.allSatisfy { same(values[$0], decodeF16(codes[$0])) })
      #expect(values.allSatisfy { !$0.isSignalingNaN })
    }
  }

  @Test func bfloat16WidensExactly() {
    let codes = (0...65535).map { UInt16($0) }
    for table in usableTables() {
      var values = Array(repeating: Float(0), count: codes.count)
      table.pointee.f32_from_bf16(codes, Int64(codes.count), &values)
      #expect(codes.indices.allSatisfy { values[$0].bitPattern == UInt32(codes[$0]) << 16 })
    }
  }

  @Test func scaledE4M3WidensExactly() {
    let codes = (0...255).map { UInt8($0) }
    for table in usableTables() {
      for block in [1, 5, 16, 100, 128, 256] {
        let scales = (0..<256).map { Float(sign: .plus, exponent: $0 % 60 - 30, significand: 1 + Float($0) / 300) }
        var values = Array(repeating: Float(0), count: 256)
        var shorts = Array(repeating: UInt16(0), count: 256)
        table.pointee.f32_from_e4m3(codes, scales, Int64(block), 256, &values)
        table.pointee.bf16_from_e4m3(codes, scales, Int64(block), 256, &shorts)
        for i in 0..<256 {
          let wanted = Float(decodeE4M3(codes[i]) * Double(scales[i / block]))
          #expect(same(values[i], Double(wanted)), "code \(i)")
          #expect(same(Float(decodeBF16(shorts[i])), roundedToBF16(Double(wanted))), "code \(i)")
        }
      }
      var values = Array(repeating: Float(0), count: 256)
      table.pointee.f32_from_e4m3(codes, nil, 0, 256, &values)
      #expect((0..<256).allSatisfy { same(values[$0], decodeE4M3(codes[$0])) })
    }
  }

  @Test func scaledIntegersWidenExactly() {
    let codes = (-128...127).map { Int8($0) }
    for table in usableTables() {
      for block in [1, 5, 16, 100, 128, 256] {
        let scales = (0..<256).map { 0.001 + Float($0) / 77 }
        var values = Array(repeating: Float(0), count: 256)
        var shorts = Array(repeating: UInt16(0), count: 256)
        table.pointee.f32_from_i8(codes, scales, Int64(block), 256, &values)
        table.pointee.bf16_from_i8(codes, scales, Int64(block), 256, &shorts)
        for i in 0..<256 {
          let wanted = Float(Double(codes[i]) * Double(scales[i / block]))
          #expect(values[i] == wanted && Float(decodeBF16(shorts[i])) == Float(roundedToBF16(Double(wanted))))
        }
      }
      var values = Array(repeating: Float(0), count: 256)
      table.pointee.f32_from_i8(codes, nil, 0, 256, &values)
      #expect((0..<256).allSatisfy { values[$0] == Float(codes[$0]) })
    }
  }

  /// Narrows in one call and in calls of every awkward length, which must agree and write nothing behind.
  private func narrow(
    _ samples: [Float], _ kernel: (UnsafePointer<Float>, Int64, UnsafeMutablePointer<UInt16>) -> Void
  ) -> [UInt16] {
    var whole = Array(repeating: UInt16(0), count: samples.count)
    kernel(samples, Int64(samples.count), &whole)
    for length in lengths where length <= samples.count {
      let start = samples.count - length
      var part = Array(repeating: UInt16(0xbeef), count: length + 16)
      Array(samples[start...]).withUnsafeBufferPointer { x in
        if let x = x.baseAddress { kernel(x, Int64(length), &part) }
      }
      #expect(Array(part[..<length]) == Array(whole[start...]) && part[length...].allSatisfy { $0 == 0xbeef })
    }
    return whole
  }

  @Test func bfloat16RoundsToNearestEven() {
    let samples = boundaries((0..<0x7f80).map { decodeBF16(UInt16($0)) })
    let wanted = samples.map { encodeBF16(Double($0)) }
    for table in usableTables() {
      let codes = narrow(samples) { table.pointee.bf16_from_f32($0, $1, $2) }
      let wrong = samples.indices.first { codes[$0] != wanted[$0] && !(samples[$0].isNaN && codes[$0] & 0x7fc0 == 0x7fc0) }
      #expect(wrong == nil, "\(String(cString: table.pointee.name)): \(wrong.map { (samples[$0], codes[$0]) } ?? (0, 0))")
    }
  }

  @Test func halfRoundsToNearestEven() {
    let samples = boundaries((0..<0x7c00).map { decodeF16(UInt16($0)) } + [65536])
    let wanted = samples.map { encodeF16(Double($0)) }
    for table in usableTables() {
      let codes = narrow(samples) { table.pointee.f16_from_f32($0, $1, $2) }
      let wrong = samples.indices.first { codes[$0] != wanted[$0] && !(samples[$0].isNaN && codes[$0] & 0x7e00 == 0x7e00) }
      #expect(wrong == nil, "\(String(cString: table.pointee.name)): \(wrong.map { (samples[$0], codes[$0]) } ?? (0, 0))")
    }
  }

  /// A NaN whose payload lies only in the bits that are dropped must not become an infinity.
  @Test func narrowedNaNStaysNaN() {
    let samples = [0x7f80_0001, 0xff80_0001, 0x7fff_ffff, 0x7fc0_0000].map { Float(bitPattern: $0) }
    for table in usableTables() {
      var codes = Array(repeating: UInt16(0), count: 4)
      table.pointee.bf16_from_f32(samples, 4, &codes)
      #expect(codes.allSatisfy { $0 & 0x7fc0 == 0x7fc0 })
      table.pointee.f16_from_f32(samples, 4, &codes)
      #expect(codes.allSatisfy { $0 & 0x7e00 == 0x7e00 })
    }
  }

  /// A row whose largest magnitude is 448 has scale 1, so the codes are those of the numbers themselves.
  @Test func e4m3RoundsToNearestEven() {
    let samples = boundaries((0..<0x7f).map { decodeE4M3(UInt8($0)) }).filter { $0.magnitude <= 448 } + [448]
    for table in usableTables() {
      for powerOfTwo in [Int32(0), 1] {
        var codes = Array(repeating: UInt8(0), count: samples.count)
        let scale = table.pointee.e4m3_from_f32(samples, Int64(samples.count), powerOfTwo, &codes)
        #expect(scale == 1)
        let wrong = samples.indices.first { codes[$0] != encodeE4M3(Double(samples[$0])) }
        #expect(wrong == nil, "\(String(cString: table.pointee.name)): \(wrong.map { (samples[$0], codes[$0]) } ?? (0, 0))")
      }
    }
  }

  /// The codes are roundings of the float quotient, in the scale that the reference defines.
  @Test func quantisersFollowTheirDefinition() {
    var random = SplitMix64(seed: 6)
    for deviation in [1e-38, 1e-9, 1e-5, 0.03, 1, 500, 1e37] {
      for length in lengths {
        let x = random.normals(length, deviation: deviation)
        let row = x.map { Float($0) }
        for table in usableTables() {
          checkE4M3(table, row, powerOfTwo: false)
          checkE4M3(table, row, powerOfTwo: true)
          checkIntegers(table, row)
        }
      }
    }
  }

  private func checkE4M3(_ table: Table, _ row: [Float], powerOfTwo: Bool) {
    var codes = Array(repeating: UInt8(0xee), count: row.count + 16)
    let scale = table.pointee.e4m3_from_f32(row, Int64(row.count), powerOfTwo ? 1 : 0, &codes)
    let wanted = quantizeE4M3(row.map { Double($0) }, block: row.count, powerOfTwo: powerOfTwo)
    #expect(Double(scale) == wanted.scales[0])
    #expect(row.indices.allSatisfy { codes[$0] == encodeE4M3(Double(row[$0] / scale)) })
    #expect(codes[row.count...].allSatisfy { $0 == 0xee })
  }

  private func checkIntegers(_ table: Table, _ row: [Float]) {
    var codes = Array(repeating: Int8(-128), count: row.count + 16)
    let scale = table.pointee.i8_from_f32(row, Int64(row.count), &codes)
    let wanted = quantizeINT8(row.map { Double($0) }, block: row.count)
    #expect(Double(scale) == wanted.scales[0])
    for (x, code) in zip(row, codes) {
      #expect(Float(code) == min(127, max(-127, (x / scale).rounded(.toNearestOrEven))))
    }
    #expect(codes[row.count...].allSatisfy { $0 == -128 })
  }

  @Test func quantisersOfZerosAndOfWhatIsNotFinite() {
    for table in usableTables() {
      for length in lengths {
        var row = Array(repeating: Float(0), count: length)
        var codes = Array(repeating: UInt8(1), count: length)
        var integers = Array(repeating: Int8(1), count: length)
        let floor = Float(1e-4) / 448
        #expect(table.pointee.e4m3_from_f32(row, Int64(length), 0, &codes) == floor && codes.allSatisfy { $0 == 0 })
        #expect(table.pointee.i8_from_f32(row, Int64(length), &integers) == 1 && integers.allSatisfy { $0 == 0 })
        for bad in [Float.nan, .infinity, -.infinity] {
          row[length - 1] = bad
          #expect(table.pointee.e4m3_from_f32(row, Int64(length), 1, &codes).isNaN)
          #expect(codes.allSatisfy { $0 == 0x7f })
          #expect(table.pointee.i8_from_f32(row, Int64(length), &integers).isNaN)
          #expect(integers.allSatisfy { $0 == 0 })
        }
      }
    }
  }

  @Test(arguments: [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
  func rotationIsTheSylvesterMatrix(_ length: Int) {
    var random = SplitMix64(seed: 7)
    let x = random.normals(length)
    let wanted = rotateHadamard(x)
    for table in usableTables() {
      var y = x.map { Float($0) } + [guardValue]
      table.pointee.hadamard(&y, Int64(length))
      // Each of log2(n) additions and the product round once, relative to numbers no larger than the row's norm.
      let bound = Double(Float.ulpOfOne) * 12 * x.reduce(0) { $0 + $1 * $1 }.squareRoot()
      for i in 0..<length { #expect(abs(Double(y[i]) - wanted[i]) <= bound, "element \(i)") }
      #expect(y[length] == guardValue)
    }
  }

  /// Every table gives what the portable one gives, bit for bit, on rows of random bits.
  @Test func tablesAgreeOnRandomData() throws {
    let tables = usableTables()
    let first = try #require(tables.first)
    var random = SplitMix64(seed: 8)
    for round in 0..<200 {
      let length = 1 + random.integer(below: 300)
      let bits = (0..<length).map { _ in UInt32(truncatingIfNeeded: random.next()) }
      // Every other round without infinities and NaN, over 40 binary orders of magnitude.
      let row = bits.map { Float(bitPattern: round % 2 == 0 ? $0 : ($0 & 0x807f_ffff) | (100 + ($0 >> 8) % 40) << 23) }
      let wanted = results(first, row, bits)
      for table in tables.dropFirst() {
        #expect(results(table, row, bits) == wanted, "\(String(cString: table.pointee.name)), round \(round)")
      }
    }
  }

  private struct Results: Equatable {
    var halves: [UInt16], shorts: [UInt16], codes: [UInt8], integers: [Int8], widened: [UInt32], scales: [UInt32]
    var rotated: [UInt32]
  }

  private func results(_ table: Table, _ row: [Float], _ bits: [UInt32]) -> Results {
    let n = Int64(row.count)
    let bytes = bits.map { UInt8(truncatingIfNeeded: $0 >> 3) }
    let words = bits.map { UInt16(truncatingIfNeeded: $0 >> 3) }
    var halves = Array(repeating: UInt16(0), count: row.count), shorts = halves, narrowed = halves
    var codes = Array(repeating: UInt8(0), count: row.count)
    var integers = Array(repeating: Int8(0), count: row.count)
    var widened = Array(repeating: Float(0), count: row.count), fromHalf = widened
    table.pointee.f16_from_f32(row, n, &halves)
    table.pointee.bf16_from_f32(row, n, &shorts)
    let e4m3 = table.pointee.e4m3_from_f32(row, n, Int32(bits[0] & 1), &codes)
    let i8 = table.pointee.i8_from_f32(row, n, &integers)
    let scales = (0..<row.count).map { 0.5 + Float($0) }
    table.pointee.f32_from_e4m3(bytes, scales, 7, n, &widened)
    table.pointee.bf16_from_e4m3(bytes, scales, 7, n, &narrowed)
    table.pointee.f32_from_f16(words, n, &fromHalf)
    let length = row.count < 2 ? 1 : 1 << (Int.bitWidth - 1 - row.count.leadingZeroBitCount)
    var rotated = row.map { $0.isFinite && $0.magnitude < 1e30 ? $0 : 1 }
    table.pointee.hadamard(&rotated, Int64(length))
    return Results(
      halves: halves + narrowed, shorts: shorts, codes: codes, integers: integers,
      widened: (widened + fromHalf).map(\.bitPattern), scales: [e4m3, i8].map { $0.isNaN ? 0 : $0.bitPattern },
      rotated: rotated.map(\.bitPattern))
  }
}

private let guardValue: Float = 12345

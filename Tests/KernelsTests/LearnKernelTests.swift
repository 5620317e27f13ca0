// The learn kernels of every table this machine can run, against plain Double arithmetic: tails in every direction,
// transposed left sides, rows between others that must stay as they are. It refuses to time anything.

import Glibc
import TamisKernels
import TamisReference
import Testing

@Suite struct LearnKernelTests {
  private static let tables: [String] = {
    var names: [String] = []
    while let name = tk_usable(Int32(names.count)) { names.append(String(cString: name)) }
    return names
  }()

  @Test(arguments: tables)
  func accumulateIsAProduct(table: String) throws {
    let kernels = try #require(tk_choose(table)).pointee
    var random = SplitMix64(seed: 3)
    for (rows, outputs, inputs) in [(1, 1, 1), (4, 64, 16), (7, 83, 300), (5, 15, 2), (9, 130, 129), (3, 16, 0)] {
      for transposed in [false, true] {
        for add in [false, true] {
          let (xRow, xColumn) = transposed ? (1, rows + 2) : (inputs + 2, 1)
          let x = random.normals((rows + 2) * (inputs + 2)).map(Float.init)
          let w = random.normals(max(inputs, 1) * (outputs + 3)).map(Float.init)
          let before = random.normals(rows * (outputs + 5)).map(Float.init)
          var y = before
          kernels.accumulate(
            x, xRow * 4, xColumn * 4, w, (outputs + 3) * 4, Int32(rows), Int32(outputs), Int32(inputs), add ? 1 : 0, &y,
            (outputs + 5) * 4)
          for r in 0..<rows {
            for o in 0..<outputs + 5 {
              let at = r * (outputs + 5) + o
              var expected = Double(before[at])
              var size = abs(expected)
              if o < outputs {
                if !add { (expected, size) = (0, 0) }
                for i in 0..<inputs {
                  let term = Double(x[r * xRow + i * xColumn]) * Double(w[i * (outputs + 3) + o])
                  expected += term
                  size += abs(term)
                }
              }
              #expect(abs(Double(y[at]) - expected) <= 2e-6 * size, "\(rows)x\(outputs)x\(inputs) at \(r), \(o)")
            }
          }
        }
      }
    }
  }

  @Test(arguments: tables)
  func rowsOfScoresGoForwardAndBack(table: String) throws {
    let kernels = try #require(tk_choose(table)).pointee
    var random = SplitMix64(seed: 4)
    for (heads, count) in [(1, 1), (4, 100), (3, 17), (64, 48)] {
      let stride = count + 7
      let a = random.normals(heads * stride).map(Float.init)
      let weight = random.normals(heads).map(Float.init)
      let exact = (0..<count).map { s in
        (0..<heads).reduce(0.0) { $0 + Double(weight[$1]) * max(0, Double(a[$1 * stride + s])) }
      }
      var score = [Float](repeating: -7, count: count + 1)
      kernels.mix(a, stride * 4, weight, Int32(heads), Int32(count), &score)
      #expect(score[count] == -7)
      for s in 0..<count { #expect(abs(Double(score[s]) - exact[s]) <= 1e-5) }

      let p = (0..<count).map { _ in Float(random.uniform()) }
      var soft = score
      var (top, sum, product): (Float, Float, Float) = (0, 0, 0)
      kernels.soften(&soft, p, Int32(count), 0.5, &top, &sum, &product)
      let scaled = score[0..<count].map { 0.5 * Double($0) }
      let largest = try #require(scaled.max())
      #expect(Double(top) == largest && soft[count] == -7)
      for s in 0..<count { #expect(abs(Double(soft[s]) - exp(scaled[s] - largest)) <= 2e-6) }
      #expect(abs(Double(sum) - scaled.reduce(0) { $0 + exp($1 - largest) }) <= 1e-5 * Double(count))
      #expect(abs(Double(product) - zip(scaled, p).reduce(0) { $0 + $1.0 * Double($1.1) }) <= 1e-4)

      var (gradient, x) = (a, soft)
      var slopes = [Float](repeating: 0, count: heads)
      kernels.mix_back(&gradient, stride * 4, weight, Int32(heads), Int32(count), &x, 0.25, p, 3, &slopes)
      let g = (0..<count).map { 3 * (0.25 * Double(soft[$0]) - Double(p[$0])) }
      for h in 0..<heads {
        for s in 0..<stride {
          let before = Double(a[h * stride + s])
          let expected = s >= count ? before : before > 0 ? g[s] * Double(weight[h]) : 0
          #expect(abs(Double(gradient[h * stride + s]) - expected) <= 1e-5)
        }
        let slope = (0..<count).reduce(0.0) { $0 + g[$1] * max(0, Double(a[h * stride + $1])) }
        #expect(abs(Double(slopes[h]) - slope) <= 1e-4)
      }
      for s in 0..<count { #expect(abs(Double(x[s]) - g[s]) <= 1e-5) }
    }
  }
}

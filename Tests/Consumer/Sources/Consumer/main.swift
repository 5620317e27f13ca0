// Selects the two keys nearest to a query through the Swift product, and prints them.
import Tamis

var query: [Float] = [1, 0, 0, 1]
var weight: [Float] = [1]
var keys: [Float] = [
  1, 0, 0, 0,
  0, 1, 0, 0,
  1, 0, 0, 1,
  0, 0, 1, 0,
  0, 0, 0, 2,
]
var chosen: [Int32] = [-1, -1]

func tensor<Element>(
  _ memory: UnsafeMutableBufferPointer<Element>, _ dtype: Int32, _ shape: [Int64]
) -> tamis_tensor {
  var tensor = tamis_tensor()
  tensor.data = UnsafeMutableRawPointer(memory.baseAddress)
  tensor.dtype = dtype
  tensor.ndim = Int32(shape.count)
  withUnsafeMutableBytes(of: &tensor.shape) { $0.copyBytes(from: shape.withUnsafeBytes { Array($0) }) }
  return tensor
}

let status = query.withUnsafeMutableBufferPointer { query in
  weight.withUnsafeMutableBufferPointer { weight in
    keys.withUnsafeMutableBufferPointer { keys in
      chosen.withUnsafeMutableBufferPointer { chosen in
        var q = tensor(query, Int32(TAMIS_F32), [1, 1, 4])
        var w = tensor(weight, Int32(TAMIS_F32), [1, 1])
        var key = tensor(keys, Int32(TAMIS_F32), [5, 4])
        var indices = tensor(chosen, Int32(TAMIS_I32), [1, 2])
        return tamis_select(nil, &q, &w, &key, nil, &indices, nil)
      }
    }
  }
}
guard status == TAMIS_OK else { fatalError(String(cString: tamis_last_error())) }
guard chosen == [2, 4] else { fatalError("chose \(chosen) instead of [2, 4]") }
print("tamis", String(tamis_version(), radix: 16), "chose", chosen)

package job

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/hashicorp/nomad/plugins/shared/hclspec"
)

// bytesOf are the bytes of a fuzzer, of which values are made. At the end, all are zero.
type bytesOf struct{ data []byte }

func (b *bytesOf) next() byte {
	if len(b.data) == 0 {
		return 0
	}
	first := b.data[0]
	b.data = b.data[1:]
	return first
}

// below returns a number from 0 to n-1, of which there are at most 256.
func (b *bytesOf) below(n int) int { return int(b.next()) % n }

// text returns a word that fits to an option, a hostile one, two of them together, or
// what the bytes themselves say.
func (b *bytesOf) text(fit []string) string {
	switch n := int(b.next()); {
	case n < 120 && len(fit) > 0:
		return fit[n%len(fit)]
	case n < 200:
		return hostile[(n+b.below(256))%len(hostile)]
	case n < 240:
		return b.text(fit) + b.text(nil)
	default:
		size := min(n-239, len(b.data))
		text := string(b.data[:size])
		b.data = b.data[size:]
		return text
	}
}

// value is a value of an option in Nomad's msgpack form.
type value = any

var numbers = []int64{0, 1, -1, 2, 15, 16, 100, 1000, 4095, 10000, 16384, 65536, 100000, 1000000, 1 << 20, 1 << 31, 1 << 62, math.MaxInt64, math.MinInt64}

func (b *bytesOf) number() value {
	switch n := b.below(32); {
	case n < len(numbers):
		return numbers[n]
	case n < 30:
		return int64(int8(b.next()))
	default:
		return float64(b.next()) / 2
	}
}

// shape says which values an option can have, by its schema.
type shape struct {
	name   string
	kind   string   // of an attribute, or attrs, list or block
	normal value    // if it is left out
	nested []*shape // of list and block

	encodedName, encodedNormal []byte
}

const (
	attrsKind = "block attrs"
	listKind  = "block list"
	blockKind = "block"
)

// shapeOf reads a schema. The fuzzer so knows new options by themselves.
func shapeOf(name string, spec *hclspec.Spec) *shape {
	s := &shape{name: name}
	switch block := spec.Block.(type) {
	case *hclspec.Spec_Attr:
		s.kind = block.Attr.Type
	case *hclspec.Spec_Default:
		s = shapeOf(name, block.Default.Primary)
		s.normal = literal(s.kind, block.Default.Default.GetLiteral().Value)
	case *hclspec.Spec_BlockAttrs:
		s.kind = attrsKind
	case *hclspec.Spec_BlockList:
		s.kind, s.nested, s.normal = listKind, shapesOf(block.BlockList.Nested), []value{}
	case *hclspec.Spec_BlockValue:
		s.kind, s.nested = blockKind, shapesOf(block.BlockValue.Nested)
	default:
		panic(fmt.Sprintf("%s: the fuzzer does not know %T", name, block))
	}
	return s
}

func shapesOf(spec *hclspec.Spec) (list []*shape) {
	attributes := spec.GetObject().Attributes
	for _, name := range slices.Sorted(maps.Keys(attributes)) {
		list = append(list, shapeOf(name, attributes[name]))
	}
	return list
}

func literal(kind, text string) (v value) {
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		panic(err)
	}
	if number, ok := v.(float64); ok && kind == "number" {
		return int64(number)
	}
	return v
}

// make returns a value for the option.
func (s *shape) make(b *bytesOf) value {
	switch s.kind {
	case "string":
		return b.text(fitting[s.name])
	case "bool":
		return b.next()&1 == 1
	case "number":
		return b.number()
	case "any":
		return s.makeAny(b, 2)
	case "list(string)":
		list := make([]value, 1+b.below(3))
		for i := range list {
			list[i] = b.text(fitting[s.name])
		}
		return list
	case "list(map(number))":
		return []value{map[string]value{b.text(fitting[s.name]): b.number()}}
	case attrsKind:
		all := map[string]value{}
		for range 1 + b.below(2) {
			all[b.text(fitting[s.name])] = b.text(fitting[s.name+"="])
		}
		return all
	case blockKind:
		return object(s.nested, b)
	case listKind:
		list := make([]value, 1+b.below(2))
		for i := range list {
			list[i] = object(s.nested, b)
		}
		return list
	}
	panic(fmt.Sprintf("%s: the fuzzer knows no values of %s", s.name, s.kind))
}

func (s *shape) makeAny(b *bytesOf, depth int) value {
	switch n := b.below(8); {
	case n < 3 && depth > 0:
		list := make([]value, b.below(4))
		for i := range list {
			list[i] = s.makeAny(b, depth-1)
		}
		return list
	case n == 3:
		return b.number()
	case n == 4:
		return b.next()&1 == 1
	case n == 5:
		return map[string]value{b.text(nil): b.text(nil)}
	default:
		return b.text(fitting[s.name])
	}
}

// object gives most of a block's options a value.
func object(shapes []*shape, b *bytesOf) value {
	values := map[string]value{}
	for _, s := range shapes {
		values[s.name] = s.normal
		if b.next()&3 != 0 {
			values[s.name] = s.make(b)
		}
	}
	return values
}

// appendValue appends the msgpack form of a value.
func appendValue(to []byte, v value) []byte {
	switch v := v.(type) {
	case nil:
		return append(to, 0xc0)
	case bool:
		if v {
			return append(to, 0xc3)
		}
		return append(to, 0xc2)
	case int64:
		return binary.BigEndian.AppendUint64(append(to, 0xd3), uint64(v))
	case float64:
		return binary.BigEndian.AppendUint64(append(to, 0xcb), math.Float64bits(v))
	case string:
		to = binary.BigEndian.AppendUint16(append(to, 0xda), uint16(len(v)))
		return append(to, v...)
	case []value:
		to = binary.BigEndian.AppendUint16(append(to, 0xdc), uint16(len(v)))
		for _, element := range v {
			to = appendValue(to, element)
		}
		return to
	case map[string]value:
		to = binary.BigEndian.AppendUint16(append(to, 0xde), uint16(len(v)))
		for name, element := range v {
			to = appendValue(appendValue(to, name), element)
		}
		return to
	}
	panic(fmt.Sprintf("%T is no value", v))
}

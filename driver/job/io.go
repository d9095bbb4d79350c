package job

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/machine"
)

// ioOptions limit what a task reads from and writes to block devices. A device is named by
// its node, or by a path on it.
type ioOptions struct {
	IOReadBandwidth  map[string]string `codec:"io_read_bandwidth"`
	IOReadIOPS       map[string]string `codec:"io_read_iops"`
	IOWeight         int64             `codec:"io_weight"`
	IOWriteBandwidth map[string]string `codec:"io_write_bandwidth"`
	IOWriteIOPS      map[string]string `codec:"io_write_iops"`
}

var ioSchema = schema.Options{
	"io_read_bandwidth":  schema.StringMap("io_read_bandwidth"),
	"io_read_iops":       schema.StringMap("io_read_iops"),
	"io_weight":          schema.Attr("io_weight", "number"),
	"io_write_bandwidth": schema.StringMap("io_write_bandwidth"),
	"io_write_iops":      schema.StringMap("io_write_iops"),
}

const maxIOWeight = 10000

// deviceLimits returns the options that have a limit for each device.
func (c TaskConfig) deviceLimits(limits *machine.Limits) []deviceLimit {
	return []deviceLimit{
		{"io_read_bandwidth", c.IOReadBandwidth, bandwidth, &limits.IO.ReadBytes},
		{"io_read_iops", c.IOReadIOPS, operations, &limits.IO.ReadOps},
		{"io_write_bandwidth", c.IOWriteBandwidth, bandwidth, &limits.IO.WriteBytes},
		{"io_write_iops", c.IOWriteIOPS, operations, &limits.IO.WriteOps},
	}
}

type deviceLimit struct {
	option  string
	devices map[string]string
	parse   func(at, value string) (uint64, error)
	limits  *map[string]uint64
}

func bandwidth(at, value string) (uint64, error) {
	return schema.Bytes(value), schema.CheckSize(at, value, "10MB")
}

func operations(at, value string) (uint64, error) {
	number, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %q is not a number of operations in a second", at, value)
	}
	return number, nil
}

func (c TaskConfig) validateIO() error {
	var found schema.Mistakes
	found.Unless(c.IOWeight >= 0 && c.IOWeight <= maxIOWeight, "io_weight: %d is not between 1 and %d", c.IOWeight, maxIOWeight)
	for _, limit := range c.deviceLimits(&machine.Limits{}) {
		for _, device := range slices.Sorted(maps.Keys(limit.devices)) {
			at := fmt.Sprintf("%s[%q]", limit.option, device)
			value, err := limit.parse(at, limit.devices[device])
			found.Add(schema.Prefixed(at+": ", machine.CheckDevicePath(device)), err)
			found.Unless(err != nil || value > 0, "%s: a limit of 0 would stop the task", at)
		}
	}
	return found.Err()
}

func (c TaskConfig) applyIO(in Input, spec *machine.Spec) error {
	var found schema.Mistakes
	spec.Limits.IO.Weight = uint64(c.IOWeight)
	found.Add(in.controller("io", "io_weight", c.IOWeight > 0))
	for _, limit := range c.deviceLimits(&spec.Limits) {
		found.Add(in.controller("io", limit.option, len(limit.devices) > 0))
		for device, text := range limit.devices {
			if *limit.limits == nil {
				*limit.limits = map[string]uint64{}
			}
			(*limit.limits)[device], _ = limit.parse("", text)
		}
	}
	return found.Err()
}

package systemd

import (
	"context"
	"strings"

	"github.com/godbus/dbus/v5"
)

// JournalFields returns what LogExtraFields= adds to the journal entries of a
// service, by name. The error is [ErrNotFound] if the unit is not loaded.
func (c *Conn) JournalFields(ctx context.Context, name string) (map[string]string, error) {
	var path dbus.ObjectPath
	if err := c.call(ctx, manager("get unit", name, "GetUnit", name), &path); err != nil {
		return nil, err
	}
	r := request{
		op: "read journal fields of unit", name: name, dest: systemdName, path: path,
		method: propertyIface + ".Get", args: []any{"org.freedesktop.systemd1.Service", "LogExtraFields"},
	}
	var value dbus.Variant
	if err := c.call(ctx, r, &value); err != nil {
		return nil, err
	}
	list, _ := value.Value().([][]byte)
	fields := make(map[string]string, len(list))
	for _, field := range list {
		key, text, _ := strings.Cut(string(field), "=")
		fields[key] = text
	}
	return fields, nil
}

package machine

import (
	"maps"
	"slices"

	"nomad-driver-nspawn/nspawn/systemd"
)

// journalArgs turns nspawn's linking of journals off: nspawn would link them by plain
// paths, and follow symbolic links of the image. The driver links them itself.
func journalArgs() []string { return []string{"--link-journal=no"} }

func journalProperties(s Spec) []systemd.Property {
	props := []systemd.Property{systemd.NewProperty("LogExtraFields", journalFields(s.JournalFields))}
	if s.LogToJournal {
		props = append(props,
			systemd.NewProperty("StandardOutput", "journal"),
			systemd.NewProperty("StandardError", "journal"),
			systemd.NewProperty("SyslogIdentifier", s.Machine),
		)
	}
	return props
}

func journalFields(fields map[string]string) [][]byte {
	var list [][]byte
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		list = append(list, []byte(name+"="+fields[name]))
	}
	return list
}

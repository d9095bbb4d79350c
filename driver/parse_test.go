package driver

import (
	"testing"

	"github.com/hashicorp/nomad/helper/pluginutils/hclutils"

	"nomad-driver-nspawn/driver/job"
)

func parseTask(t *testing.T, hcl string) (task job.TaskConfig) {
	hclutils.NewConfigParser(job.TaskSchema).ParseHCL(t, "config {\n"+hcl+"\n}", &task)
	return task
}

func parseConfig(t *testing.T, hcl string) (config job.Config) {
	hclutils.NewConfigParser(job.ConfigSchema).ParseHCL(t, "config {\n"+hcl+"\n}", &config)
	return config
}

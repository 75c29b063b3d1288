# The bridge by itself, against a script of frames: with the address and the
# undefined behaviour sanitizer, and under valgrind.  See test/bridge/run.sh.
#
# Under valgrind all of it takes minutes, and runs with STRESS=1 only.

use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Utils;
use Test::More;

my $script = "$FindBin::Bin/../test/bridge/run.sh";

plan skip_all => 'there is no test/bridge/run.sh' unless -x $script;

# Its tests become ours, so that a failure has its name.
sub run_alone
{
	my ($how, @groups) = @_;
	my ($count, $planned) = (0, undef);

	open(my $output, '-|', $script, $how, @groups) or die "$script: $!";
	while (my $line = <$output>)
	{
		chomp $line;
		if ($line =~ /^(not )?ok \d+(?: - (.*))?$/)
		{
			$count++;
			ok(!defined $1, "$how: " . ($2 // ''));
		}
		elsif ($line =~ /^1\.\.(\d+)$/)
		{
			$planned = $1;
		}
		else
		{
			note($line);
		}
	}
	close($output);
	is($?, 0, "$how: no fault");
	is($count, $planned // 'none', "$how: all tests were run");
	return;
}

run_alone('asan');
SKIP:
{
	skip 'valgrind is not installed', 1 if !grep { -x "$_/valgrind" } split /:/, $ENV{PATH};
	run_alone('valgrind', $ENV{STRESS} ? () : qw(frames produce));
}
done_testing();

#!/usr/bin/perl
#
# Runs TAP tests as prove does, each with a limit of time, and writes how many
# passed, failed and were skipped to a file.
#
#	tap.pl --counts FILE [--jobs N] [--limit SECONDS] TEST...
#
use strict;
use warnings;

use File::Basename qw(basename dirname);
use Getopt::Long;
use TAP::Harness;

my ($counts, $jobs, $limit) = (undef, 1, 1200);
GetOptions('counts=s' => \$counts, 'jobs=i' => \$jobs, 'limit=i' => \$limit)
  && defined $counts && @ARGV
  or die "usage: $0 --counts FILE [--jobs N] [--limit SECONDS] TEST...\n";

# The guard ends timeout with us; the watchdog then ends the test.
my $guard = dirname($0) . '/build/guard';
my $harness = TAP::Harness->new(
	{
		exec => [ $guard, 'timeout', '-k', 10, $limit, $^X ],
		jobs => $jobs,
		timer => 1,
		failures => 1,
		merge => 0,
		verbosity => $ENV{TEST_VERBOSE} ? 1 : 0,
	});
my $result = $harness->runtests(@ARGV);

my ($passed, $failed, $skipped) = (0, 0, 0);
foreach my $test ($result->descriptions)
{
	my ($parser) = $result->parsers($test);
	my $bad = () = $parser->failed;

	$skipped += () = $parser->skipped;
	$passed += $parser->passed - $parser->skipped;

	# A test that skips all of itself counts as one.
	$skipped++ if $parser->skip_all;

	# One that dies, or plans more than it runs, has failed even so.
	$bad = 1 if $bad == 0 && $parser->has_problems;
	$failed += $bad;
	show_log($test) if $bad > 0;
}

open(my $file, '>', $counts) or die "$counts: $!\n";
print $file "$passed $failed $skipped\n";
close($file) or die "$counts: $!\n";
exit($failed > 0 ? 1 : 0);

# The end of what PostgreSQL::Test::Utils has logged.
sub show_log
{
	my ($test) = @_;
	my $name = basename($test);
	$name =~ s/\.[^.]+$//;
	my $dir = $ENV{TESTLOGDIR} // 'tmp_check/log';

	open(my $log, '<', "$dir/regress_log_$name") or return;
	my @lines = <$log>;
	splice(@lines, 0, -120) if @lines > 120;
	print "---- end of the log of $test\n", @lines, "----\n";
	return;
}

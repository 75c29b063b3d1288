
=pod

=head1 NAME

OutboxTest::Install - a private copy of the installed PostgreSQL

=head1 SYNOPSIS

  my $install = private_install();
  my $node = PostgreSQL::Test::Cluster->new('main', install_path => $install->{path});
  replace_program("$install->{pkglibdir}/outbox_bridge", $contents);

=head1 DESCRIPTION

For tests that replace a program.  PostgreSQL finds its directories from where
the server lies, so programs are copied, while libraries and shared files are
links, but for those of outbox.  It goes with the test.

=cut

package OutboxTest::Install;

use strict;
use warnings;

use Exporter 'import';
use File::Basename qw(basename dirname);
use File::Copy qw(copy);
use File::Path qw(mkpath);
use PostgreSQL::Test::Utils ();

our @EXPORT = qw(private_install replace_program);

sub private_install
{
	my $root = PostgreSQL::Test::Utils::tempdir();
	my %dir;

	foreach my $name (qw(bindir pkglibdir sharedir))
	{
		chomp($dir{$name} = `pg_config --$name`);
		die "pg_config --$name failed" if $? != 0 || $dir{$name} eq '';
	}
	mkpath([ "$root$dir{bindir}", "$root$dir{pkglibdir}", dirname("$root$dir{sharedir}") ]);

	foreach my $program (glob("$dir{bindir}/*"))
	{
		_copy($program, "$root$dir{bindir}/" . basename($program)) if -f $program;
	}
	foreach my $file (glob("$dir{pkglibdir}/*"))
	{
		my $target = "$root$dir{pkglibdir}/" . basename($file);

		if (basename($file) =~ /^outbox/)
		{
			_copy($file, $target);
		}
		else
		{
			symlink($file, $target) or die "$target: $!";
		}
	}
	symlink($dir{sharedir}, "$root$dir{sharedir}") or die "$root$dir{sharedir}: $!";
	return {
		path => dirname("$root$dir{bindir}"),
		bindir => "$root$dir{bindir}",
		pkglibdir => "$root$dir{pkglibdir}",
	};
}

# Another program in the place of one.  A new file, since one that runs can't be
# written to, and in one step: a worker may start it at any time.
sub replace_program
{
	my ($program, $contents) = @_;

	PostgreSQL::Test::Utils::append_to_file("$program.new", $contents);
	chmod(oct(755), "$program.new") or die "$program.new: $!";
	rename("$program.new", $program) or die "$program: $!";
	return;
}

sub _copy
{
	my ($from, $to) = @_;

	copy($from, $to) or die "$to: $!";
	chmod((stat($from))[2] & oct(777), $to) or die "$to: $!";
	return;
}

1;
